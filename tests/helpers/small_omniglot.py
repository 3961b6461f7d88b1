"""A small Omniglot, drawn here and laid out as the real one, for the tests of what reads it."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mamllit.data.pool import ClassPool
from mamllit.data.sources.omniglot import load_characters

PARTS = {"images_background": ("Runes", "Ogham"), "images_evaluation": ("Linear_B",)}
NAMES = [f"{a}/character{c:02d}" for a in ("Linear_B", "Ogham", "Runes") for c in (1, 2)]  # sorted
DRAWINGS = 3


def drawing(c: int, i: int, side: int = 105) -> Image.Image:
    """A 1-bit picture, ink = 0, different for every character c and drawing i."""
    paper = np.random.default_rng([c, i]).random((side, side)) > 0.2
    return Image.fromarray(paper)


def draw(root: Path) -> Path:
    """Lay the small set out under `root` as extracted folders; returns `root`."""
    for part, alphabets in PARTS.items():
        for c, name in enumerate(NAMES):
            if name.split("/")[0] in alphabets:
                folder = root / part / name
                folder.mkdir(parents=True)
                for i in range(DRAWINGS):
                    drawing(c, i).save(folder / f"{c:04d}_{i + 1:02d}.png")
    return root


def pack(root: Path) -> Path:
    """Turn the folders under `root` into zips."""
    for part in PARTS:
        shutil.make_archive(str(root / part), "zip", root_dir=root, base_dir=part)
        shutil.rmtree(root / part)
    return root


def load(root: Path, download: bool = False, image_size: int = 28, resize: str = "nearest") -> ClassPool:
    return load_characters(root, NAMES[::-1], DRAWINGS, image_size, resize, download)
