"""Folders of images by class, and what `ImageFolderDataModule` says of them."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mamllit.data import ImageFolderDataModule

SIDE = 12
CLASSES = [f"c{i:02d}" for i in range(30)]


def draw(folder: Path, names: list[str], images: int = 4) -> Path:
    """`images` of one colour per class, one more in every second class."""
    for name in names:
        (folder / name).mkdir(parents=True)
        number = int(name[1:])
        for i in range(images + number % 2):
            suffix = (".png", ".bmp", ".PNG")[i % 3]
            Image.new("RGB", (16, 9), (number, i, 0)).save(folder / name / f"{i}{suffix}")
    return folder


def module(root: Path, **changes: Any) -> ImageFolderDataModule:
    settings = {"ways": 3, "shots": 1, "queries": 2, "standard_queries": 3, "image_size": SIDE, **changes}
    return ImageFolderDataModule(root, **settings)


def splits_of(data: ImageFolderDataModule) -> dict[str, list[str]]:
    data.setup("fit")
    return {split: list(pool.names) for split, pool in data.pools.items()}


def message_of(data: ImageFolderDataModule, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        data.setup("fit")
    return str(caught.value)
