"""How pictures become a network's input: as a data module does it, as weights expect it, and where both must agree.

A checkpoint carries the `Preparation` of the images that it was trained on. Whenever weights are used on data, it is compared
with that of the data module: weights trained with ink as 1 fail on images with paper as 1, and only the accuracy would show
it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """From a picture to the network's input.

    A picture that is not square is squeezed; transparency is put on white.

    Args:
        image_size: pixels of a side.
        channels: 1 (grey) or 3 (colour).
        resample: Pillow's filter.
        invert: dark becomes 1 and light 0, as Omniglot's ink on paper; otherwise black is 0 and white 1.
        binary: every pixel is made black or white first.
        upright: a photograph is rotated by its EXIF orientation.
        mean, std: the normalisation, (x - mean) / std for x in [0, 1].
    """

    image_size: int
    channels: int
    resample: int = int(Image.Resampling.LANCZOS)
    invert: bool = False
    binary: bool = False
    upright: bool = False
    mean: float = 0.0
    std: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def differences(self, data: "Preparation", name: str) -> list[str]:
        """Differences of `data` that weights of this preparation cannot cope with, except the ink; sentences for an error.

        Args:
            data: the preparation of the images that the weights are to see.
            name: of the weights' checkpoint.
        """
        mine, other = (
            f"{p.image_size}x{p.image_size} pixels, {p.channels} channel{'s' * (p.channels > 1)}" for p in (self, data)
        )
        problems = [] if mine == other else [f"the weights of {name} were trained on {mine}, but the data has {other}"]
        if (self.mean, self.std) != (data.mean, data.std):
            problems.append(
                f"the weights of {name} were trained with mean {self.mean:g} and std {self.std:g}, but the data is normalised "
                f"by mean {data.mean:g} and std {data.std:g}"
            )
        return problems


def omniglot(resize: str) -> Preparation:
    """Omniglot's images: ink is 1; with "nearest", as in the paper, they are of 1 bit."""
    if resize == "nearest":
        return Preparation(28, 1, int(Image.Resampling.NEAREST), invert=True, binary=True)
    return Preparation(28, 1, invert=True)


LARGE = 35  # side of the images that are jittered, a third of a drawing's


def omniglot_streams(image_size: int, jitter: bool, resize: str) -> Preparation:
    """Those of `OmniglotStreamDataModule` and, without jitter, of `OmniglotPairsDataModule`."""
    return replace(omniglot("antialias" if jitter else resize), image_size=image_size)


def _omniglot_streams(arguments: Mapping[str, Any]) -> Preparation:
    given = {"image_size": 28, "jitter": False, "resize": "nearest", **arguments}
    return omniglot_streams(int(given["image_size"]), bool(given["jitter"]), given["resize"])


def _omniglot_pairs(arguments: Mapping[str, Any]) -> Preparation:
    return _omniglot_streams({"image_size": 105, **arguments})


def _omniglot(arguments: Mapping[str, Any]) -> Preparation:
    return omniglot(arguments.get("resize", "nearest"))


def _mini_imagenet(arguments: Mapping[str, Any]) -> Preparation:
    return Preparation(int(arguments.get("image_size", 84)), 3)


def _image_folder(arguments: Mapping[str, Any]) -> Preparation:
    invert = arguments.get("invert") in (True, "ink")  # "auto" alone leaves the images as they are
    return Preparation(int(arguments.get("image_size", 84)), int(arguments.get("channels", 3)), invert=invert, upright=True)


KNOWN: dict[str, Callable[[Mapping[str, Any]], Preparation]] = {
    "OmniglotDataModule": _omniglot,
    "OmniglotStreamDataModule": _omniglot_streams,
    "OmniglotPairsDataModule": _omniglot_pairs,
    "MiniImagenetDataModule": _mini_imagenet,
    "ImageFolderDataModule": _image_folder,
}


def preparation_of(data: Mapping[str, Any]) -> Preparation | None:
    """How the images of a checkpoint's `data` were prepared: as it says, or as its DataModule does it; None if unknown."""
    if recorded := data.get("preparation"):
        try:
            return Preparation(**recorded)
        except TypeError as error:
            raise ValueError(f"the checkpoint's `preparation` of its images cannot be used: {error}") from error
    name = str(data.get("class_path", "")).rsplit(".", 1)[-1]
    return KNOWN[name](data.get("init_args") or {}) if name in KNOWN else None


def border(images: Tensor) -> Tensor:
    """The outermost pixels of images [n, C, H, W], [n, ...]: of a drawing its paper, but for a stroke or two."""
    sides = (images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1])
    return torch.cat([side.flatten(1) for side in sides], dim=1)
