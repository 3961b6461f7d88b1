"""What turns images into features: a network that was trained elsewhere and stays as it is."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mamllit.backbones.timm_net import PRETRAINED, Timm, file_digest, filled_later, state_digest, weights_file
from mamllit.data.preparation import Preparation
from mamllit.engine.cpu import prepare
from mamllit.inference.feature_cache import FeatureCache
from mamllit.inference.images import read_images

TIMM = "timm:"
DEFAULT = f"{TIMM}tf_efficientnet_lite0"  # its weights come with the extra `timm`, so that it needs no network
AT_ONCE = 32  # images in the network together


@dataclass(eq=False)
class TimmFeatures:
    """Features by a network of timm, made when it is first needed: features that lie in a cache need no timm.

    Args:
        model: its name.
        digest: SHA-256 of its weights' file, or of its state.
        make: gives the network.

    >>> from mamllit.inference.features import timm_features
    >>> timm_features("timm:test_vit", weights=None).name  # random weights, for a test
    'timm:test_vit'
    """

    model: str
    digest: str
    make: Callable[[], Timm]

    @property
    def name(self) -> str:
        return f"{TIMM}{self.model}"

    @property
    def key(self) -> str:
        """All that the features depend on beside the image."""
        return f"{self.name}, weights {self.digest}, squeezed to a square by Pillow's bicubic filter"

    @cached_property
    def network(self) -> Timm:
        return self.make().eval()

    @property
    def preparation(self) -> Preparation:
        """How a picture becomes the network's input; the network itself normalises it."""
        return Preparation(self.network.image_size, 3, int(Image.Resampling.BICUBIC), upright=True)

    def embed(self, images: Tensor) -> Tensor:
        """Features [n, D] of images [n, 3, S, S] in [0, 1]."""
        with torch.inference_mode():
            return self.network(images)

    def of_files(self, files: Sequence[Path], progress: bool = False) -> Tensor:
        """Features [n, D] of image files; the next images are decoded while the network sees the last ones.

        Raises:
            ValueError: for images that cannot be read; all are listed.
        """
        how, found = self.preparation, []
        prepare(torch.device("cpu"))
        parts = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
        bar = tqdm(total=len(files), desc="features", unit="image", disable=None if progress else True, leave=False)
        with ThreadPoolExecutor(1) as reader, bar:
            coming = reader.submit(read_images, parts[0], how)
            for i, part in enumerate(parts):
                try:
                    images = coming.result()
                except ValueError:
                    read_images(files, how)  # its error lists all files that cannot be read
                    raise
                if i + 1 < len(parts):
                    coming = reader.submit(read_images, parts[i + 1], how)
                found.append(self.embed(images).clone())
                bar.update(len(part))
        return torch.cat(found)

    def of_folder(
        self, root: Path, files: Sequence[Path], cache_dir: str | Path | None = None, progress: bool = False
    ) -> tuple[Tensor, str | None]:
        """`of_files` for files in a folder, kept on the disk; and a note where they could not be."""
        cache = FeatureCache(root, self.key, cache_dir)
        found = cache.get(files, lambda new: self.of_files(new, progress))
        return found, cache.problem

    def as_dict(self) -> dict[str, Any]:
        """What rebuilds it beside the tensors of its state."""
        return {"model": self.model, "digest": self.digest, "image_size": self.network.image_size}


def timm_features(name: str, weights: str | Path | None = PRETRAINED) -> TimmFeatures:
    """Features by a network of timm.

    Args:
        name: "timm:" and the model's name.
        weights: see `mamllit.backbones.Timm`.

    Raises:
        ValueError: for a name that does not begin so; see `Timm` for the others, which may come as late as the network is made.
        FileNotFoundError: where there is no such file.
    """
    model = name.removeprefix(TIMM)
    if not name.startswith(TIMM) or not model:
        raise ValueError(f"features is {name!r}; it must be {TIMM!r} followed by a model name, e.g. {DEFAULT}")
    if weights is None or (path := weights_file(model, weights)) is None:
        network = Timm(model, weights)
        return TimmFeatures(model, state_digest(network), lambda: network)
    return TimmFeatures(model, file_digest(path), lambda: Timm(model, path))


def from_state(described: dict[str, Any], state: dict[str, Tensor]) -> TimmFeatures:
    """What `TimmFeatures.as_dict` described, with its network's state; see `Timm` for the errors."""

    def make() -> Timm:
        with filled_later():
            network = Timm(described["model"], None, image_size=described["image_size"])
        network.load_state_dict(state)
        return network

    return TimmFeatures(described["model"], described["digest"], make)
