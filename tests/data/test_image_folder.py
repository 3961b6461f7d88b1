"""Folders of a user's own images: both forms, the splits, and every folder that is refused, with its numbers."""

import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import CLASSES, SIDE, draw, message_of, module, splits_of
from PIL import Image

from mamllit.core.philox import SPLITS
from mamllit.data.sources import prepare
from mamllit.data.sources.image_folder import split_by_ratio


@pytest.fixture(autouse=True)
def _say_again() -> None:
    prepare.say_once.cache_clear()


# ---- what is found -------------------------------------------------------------------------------------------------


def test_thirty_classes_are_split_19_5_6(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(draw(tmp_path, CLASSES))
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        splits = splits_of(data)
    assert {split: len(names) for split, names in splits.items()} == {"train": 19, "val": 5, "test": 6}
    assert sorted(name for names in splits.values() for name in names) == CLASSES
    assert all(names == sorted(names) for names in splits.values())
    assert caplog.messages[0] == f"images in {tmp_path}: a folder of 30 class folders, 135 images"
    assert caplog.messages[1] == f"{tmp_path}: classes 19 train, 5 val, 6 test; test classes: {', '.join(splits['test'])}"
    for pool in data.pools.values():
        assert pool.images.shape[1:] == (3, SIDE, SIDE)
        assert pool.counts.tolist() == [4 + int(name[1:]) % 2 for name in pool.names]
        for c, name in enumerate(pool.names):
            images = pool.images[pool.offsets[c] : pool.offsets[c + 1]]
            assert (images[:, 0] == int(name[1:])).all()
            assert images[:, 1, 0, 0].tolist() == list(range(pool.counts[c]))


def test_another_split_needs_no_new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = splits_of(module(draw(tmp_path, CLASSES)))
    monkeypatch.setattr(prepare, "_decode", None)
    second = splits_of(module(tmp_path, split_seed=1))
    assert first == splits_of(module(tmp_path))
    assert first["test"] != second["test"]


def test_folders_that_are_split_already(tmp_path: Path) -> None:
    for split, names in {"train": CLASSES[:5], "val": CLASSES[5:9], "test": CLASSES[9:12]}.items():
        draw(tmp_path / split, names)
    assert splits_of(module(tmp_path)) == {"train": CLASSES[:5], "val": CLASSES[5:9], "test": CLASSES[9:12]}


def test_grey_images_and_hidden_files(tmp_path: Path) -> None:
    draw(tmp_path, CLASSES)
    (tmp_path / "c00" / "._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "c00" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    data = module(tmp_path, channels=1)
    data.prepare_data()
    assert data.pools["train"].images.shape[1:] == (1, SIDE, SIDE)


def test_episodes_of_classes_of_different_sizes(tmp_path: Path) -> None:
    data = module(draw(tmp_path, CLASSES))
    data.setup("fit")
    drawn = data.draw(0, "train", 1, 3, 0, 200)
    images = data.build(drawn).episodes
    assert images.query.x.shape == (200, 9, 3, SIDE, SIDE)
    red = images.query.x[:, :, 0, 0, 0].mul(255).round().int().reshape(200, 3, 3)
    assert (red == red[:, :, :1]).all()  # the queries of a class are of one class
    assert set(red.flatten().tolist()) == {int(name[1:]) for name in data.pools["train"].names}


def test_images_are_changed_in_meta_training_alone_and_alike_in_every_run(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(random.integers(1, 256, (SIDE, SIDE), np.uint8)).save(tmp_path / name / f"{i}.png")
    plain, flipped, cropped = (module(tmp_path, channels=1, seed=0, **more) for more in ({}, {"flip": True}, {"crop": 2}))
    for data in (plain, flipped, cropped):
        data.setup("fit")
    draw = plain.draw(0, "train", 1, 2, 5, 20)
    was, now, cut = (data.build(draw).episodes.query.x.flatten(0, 1) for data in (plain, flipped, cropped))
    mirrored = (now == was.flip(-1)).flatten(1).all(1)
    assert (mirrored | (now == was).flatten(1).all(1)).all()
    assert 0.3 < mirrored.float().mean() < 0.7
    zeros = (cut == 0).float().mean((1, 2, 3))  # of a window that is moved by up to 2 pixels each way
    assert zeros.max() <= 1 - (1 - 2 / SIDE) ** 2 + 1e-6 and len(zeros.unique()) > 3
    assert torch.equal(flipped.build(plain.draw(0, "train", 1, 2, 8, 3)).episodes.query.x.flatten(0, 1), now[18:36])
    tested = plain.draw(0, "test", 1, 3, 0, 3)
    assert torch.equal(flipped.build(tested).episodes.query.x, plain.build(tested).episodes.query.x)


# ---- the split -----------------------------------------------------------------------------------------------------


def test_a_split_is_fixed_and_a_new_class_moves_few() -> None:
    one = split_by_ratio(CLASSES, (0.64, 0.16, 0.2), 0)
    assert one == split_by_ratio(CLASSES[::-1], (0.64, 0.16, 0.2), 0)
    assert one["test"] == ["c02", "c12", "c13", "c23", "c26", "c28"]
    more = split_by_ratio([*CLASSES, "new"], (0.64, 0.16, 0.2), 0)
    moved = [name for split in SPLITS for name in one[split] if name not in more[split]]
    assert len(moved) <= 2


@pytest.mark.parametrize("number", [3, 4, 7, 100])
def test_every_split_gets_a_class(number: int) -> None:
    parts = split_by_ratio([str(i) for i in range(number)], (0.98, 0.01, 0.01), 0)
    assert all(parts.values())
    assert sorted(chain(*parts.values())) == sorted(str(i) for i in range(number))


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.8, 0.2, 0.2), (1.0, 0.0, 0.0)])
def test_ratios_that_are_none_are_refused(ratios: tuple, tmp_path: Path) -> None:
    message = message_of(module(draw(tmp_path, CLASSES[:3]), split_ratios=ratios))
    assert f"split_ratios is {list(ratios)}; it needs three numbers > 0, for train, val and test, that sum to 1" in message


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"channels": 2}, r"channels is 2; it must be 1 \(grey\) or 3 \(RGB\)"),
        ({"image_size": 0}, "image_size is 0; it must be >= 1"),
        ({"crop": -1}, "crop is -1; it must be >= 0"),
        (
            {"train_classes": ["a"], "test_classes": ["b"]},
            "lists of classes for train and test only; give one for each of train, val",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        module(tmp_path, **changes)


def test_too_few_classes_are_refused_with_ratios_that_would_do(tmp_path: Path) -> None:
    draw(tmp_path, CLASSES[:16])
    message = message_of(module(tmp_path, ways=5))
    assert "val has 3 classes, but an episode needs 5 (ways)" in message
    assert "test has 3 classes, but an episode needs 5 (ways)" in message
    assert "16 classes are enough for 5 ways in every split with split_ratios [0.374, 0.313, 0.313]." in message
    splits = splits_of(module(tmp_path, ways=5, split_ratios=[0.374, 0.313, 0.313]))
    assert [len(names) for names in splits.values()] == [6, 5, 5]


def test_too_few_classes_whatever_the_ratios(tmp_path: Path) -> None:
    assert "split_ratios" not in message_of(module(draw(tmp_path, CLASSES[:14]), ways=5))
    message = message_of(module(draw(tmp_path / "two", CLASSES[:2])))
    assert "there are 2 classes; train, val and test need at least one each. With less, do not train: `mamllit adapt" in message


def test_too_few_images_are_refused_before_training_for_the_test_split_too(tmp_path: Path) -> None:
    message = message_of(module(draw(tmp_path, CLASSES), standard_queries=4, queries=5))
    assert "train has classes with fewer images than the 6 that an episode needs (1 shots + 5 queries): c0" in message
    assert "and 9 more" in message
    assert "val has" not in message
    assert (
        "test has classes with fewer images than the 5 that an episode needs (1 shots + 4 queries of the standard prot"
        in message
    )
    assert (
        "): c02 (4), c12 (4), c26 (4), c28 (4)\nTo train on your own images, use 18 classes or more (9 at the very least, "
        "3 for each of train, val and test) with 6 images each, or fewer ways, shots or queries"
    ) in message
    assert "do not train: `mamllit adapt --features timm:tf_efficientnet_lite0 --support DIR --query DIR` needs two" in message


def test_folders_that_hold_nothing_are_named_together(tmp_path: Path) -> None:
    draw(tmp_path, CLASSES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "train" / "deeper").mkdir(parents=True)
    message = message_of(module(tmp_path))
    assert f"the class folder {tmp_path}/empty has no images (.png, .jpg, .jpeg, .jfif, .webp, .bmp, .gif, .tif," in message
    assert f"the class folder {tmp_path}/train contains folders; do train, val and test all exist?" in message


def test_folders_in_a_class_are_of_that_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, CLASSES)
    for name in ("c00/2024/summer", "c00/__MACOSX", "__MACOSX/c01"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(tmp_path / "c00" / "0.png", tmp_path / name / "more.png")
    data = module(tmp_path)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        data.setup("fit")
    counts = {name: int(n) for pool in data.pools.values() for name, n in zip(pool.names, pool.counts, strict=True)}
    assert len(counts) == 30
    assert counts["c00"] == 5
    said = [line for line in caplog.messages if "sub-folders of a class folder" in line]
    assert said == [
        f"{tmp_path}: 1 images in sub-folders of a class folder count as that class, e.g. {tmp_path}/c00/2024/summer/more.png"
    ]


def test_a_split_whose_name_is_a_class_s_is_refused(tmp_path: Path) -> None:
    """Two of the three folders of a split set, which must not become two classes."""
    for split in ("train", "val"):
        draw(tmp_path / split, CLASSES[:3])
    assert f"the class folder {tmp_path}/val contains folders; do train, val and test all exist?" in message_of(
        module(tmp_path)
    )


def test_a_root_that_is_not_there_or_empty(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path}/no; set `root`" in message_of(module(tmp_path / "no"), FileNotFoundError)
    assert f"{tmp_path} has no class folders" in message_of(module(tmp_path))


def test_a_class_in_two_split_folders_is_refused(tmp_path: Path) -> None:
    for split in SPLITS:
        draw(tmp_path / split, CLASSES[:3] if split != "test" else CLASSES[2:5])
    message = message_of(module(tmp_path))
    assert "class c02 is in train and val and test: a class may be in only one" in message
    assert "class c00 is in train and val" in message


def test_spoilt_images_are_named(tmp_path: Path) -> None:
    path = draw(tmp_path, CLASSES) / "c03" / "1.bmp"
    path.write_bytes(path.read_bytes()[:100])
    shutil.copy(tmp_path / "c00" / "0.png", tmp_path / "c00" / "x.jpg")  # the name does not matter
    message = message_of(module(tmp_path))
    assert f"images that cannot be used (1):\n  - {path}: image file is truncated" in message


def test_files_of_other_kinds_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, CLASSES[:12])
    for name in ("a.ico", "b.ICO", "c.psd", "d.svg", "e.cr2", "notes", ".hidden.ico", "Thumbs.db"):
        (tmp_path / "c00" / name).touch()
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        module(tmp_path, ways=2).setup("fit")
    said = [line for line in caplog.messages if "skipped" in line]
    heading, counts = said[0].rsplit(": ", 1)
    assert heading.startswith(f"{tmp_path}: skipped, since only .png, .jpg, .jpeg, .jfif, .webp, .bmp, .gif, .tif, ")
    assert counts.startswith("2 .ico, ")
    assert sorted(counts.split(", ")[1:]) == ["1 .cr2", "1 .psd", "1 .svg", "1 without an extension"]


def test_pipes_and_bombs_among_the_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, CLASSES)
    os.mkfifo(tmp_path / "c03" / "p.png")
    monkeypatch.setattr("mamllit.data.sources.pixels.MOST", 16 * 9)
    Image.new("RGB", (16, 10)).save(tmp_path / "c04" / "q.png")
    message = message_of(module(tmp_path))
    assert f"images that cannot be used (2):\n  - {tmp_path}/c03/p.png: is a named pipe, not a file" in message
    assert f"{tmp_path}/c04/q.png: 16x10 pixels: it has more than 144 pixels, the limit; make it smaller" in message


def test_an_error_of_any_kind_names_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, CLASSES)

    def fails(path: str, *_: Any) -> Any:
        if path.endswith("c05/0.png"):
            raise ZeroDivisionError("division by zero")
        return np.zeros((3, SIDE, SIDE), np.uint8)

    monkeypatch.setattr("mamllit.data.sources.image_folder.decode_file", fails)
    assert f"(1):\n  - {tmp_path}/c05/0.png: ZeroDivisionError: division by zero\n" in message_of(module(tmp_path))
