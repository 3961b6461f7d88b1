"""Lists that say which classes of a user's own images are for which split, as people and programs write them."""

import os
from pathlib import Path
from typing import Any

import pytest
from image_folders import CLASSES, draw, message_of, module, splits_of
from jsonargparse import ArgumentParser

from mamllit.core.philox import SPLITS
from mamllit.data import ImageFolderDataModule
from mamllit.data.sources import prepare


@pytest.fixture(autouse=True)
def _say_again() -> None:
    prepare.say_once.cache_clear()


def test_lists_of_names_and_files_of_lists(tmp_path: Path) -> None:
    draw(tmp_path / "images", CLASSES[:12])
    (tmp_path / "test.txt").write_text("c02\n\n c00 \nc01\n")
    data = module(
        tmp_path / "images",
        train_classes=["c05", "c03", "c04"],
        val_classes=["c06", "c07", "c08"],
        test_classes=str(tmp_path / "test.txt"),
    )
    splits = splits_of(data)
    assert splits == {"train": ["c03", "c04", "c05"], "val": ["c06", "c07", "c08"], "test": ["c00", "c01", "c02"]}


def test_lists_that_are_wrong_are_refused_with_all_that_is(tmp_path: Path) -> None:
    draw(tmp_path, CLASSES[:12])
    data = module(tmp_path, train_classes=["c00", "c01", "c01", "co5"], val_classes=[], test_classes=["c00"])
    message = message_of(data)
    assert "'c00' is named twice, in the lists train and test" in message
    assert "'c01' is named twice, in the lists train and train" in message
    assert "'co5' of the train list has no folder (did you mean 'c05'?)" in message
    assert "the val list is empty" in message


def test_lists_beside_folders_that_are_split_already_are_refused(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / split).mkdir()
    data = module(tmp_path, train_classes=["a"], val_classes=["b"], test_classes=["c"])
    assert "already has the folders train/, val/ and test/; leave out the lists" in message_of(data)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = module(draw(tmp_path, CLASSES[:12]), train_classes="no.txt", val_classes=["c01"], test_classes=["c02"])
    assert "cannot read the list of classes no.txt (No such file or directory)" in message_of(data, FileNotFoundError)


def test_classes_in_no_list_are_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, CLASSES[:10])
    data = module(tmp_path, train_classes=CLASSES[:3], val_classes=CLASSES[3:6], test_classes=CLASSES[6:9])
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        data.setup("fit")
    assert "1 classes are in none of the lists and are left out: c09" in caplog.messages


def rename(root: Path, **names: str) -> Path:
    for old, new in names.items():
        (root / old).rename(root / new)
    return root


def lists(root: Path, first: str, encoding: str = "utf-8") -> dict[str, Any]:
    """Files of nine classes, the first of which is `first`."""
    parts = {"train": [first, *CLASSES[1:3]], "val": CLASSES[3:6], "test": CLASSES[6:9]}
    for split, names in parts.items():
        (root / f"{split}.txt").write_bytes("\r\n".join(names).encode(encoding))
    return {f"{split}_classes": str(root / f"{split}.txt") for split in parts}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("listed", "folder"), [("é", "e\u0301"), ("e\u0301", "é"), ("é", "é"), ("Å", "\u212b")])
def test_lists_of_any_unicode_are_read(listed: str, folder: str, encoding: str, tmp_path: Path) -> None:
    """With a byte order mark, and with accents in one character or in two."""
    root = rename(draw(tmp_path / "images", CLASSES[:9]), c00=folder)
    assert splits_of(module(root, **lists(tmp_path, listed, encoding)))["train"] == sorted(["c01", "c02", folder])


def test_a_list_in_another_encoding_is_named_with_the_remedy(tmp_path: Path) -> None:
    root = rename(draw(tmp_path / "images", CLASSES[:9]), c00="café")
    message = message_of(module(root, **lists(tmp_path, "café", "latin-1")))
    assert message == (
        f"the list of classes {tmp_path}/train.txt is not UTF-8 (line 1: b'\\xe9\\r\\nc01\\r\\n'); save it again in UTF-8"
    )


def test_folders_whose_names_look_the_same_are_told_apart(tmp_path: Path) -> None:
    root = rename(draw(tmp_path / "images", CLASSES[:10]), c00="é", c09="e\u0301")
    assert splits_of(module(root, **lists(tmp_path, "e\u0301")))["train"] == ["c01", "c02", "e\u0301"]
    root = rename(root, c08="\u01ed", c07="o\u0328\u0304")  # two forms of one letter, of which the list has a third
    asked = {"train_classes": ["o\u0304\u0328"], "val_classes": ["c03"], "test_classes": ["c06"]}
    assert "has 2 folders whose names only look the same: rename one" in message_of(module(root, **asked))


def test_numbers_of_a_yaml_are_names(tmp_path: Path) -> None:
    root = rename(draw(tmp_path / "images", CLASSES[:9]), c00="7", c01="1.5", c02="yes", c03="007")
    found = splits_of(module(root, train_classes=[7, 1.5, "yes"], val_classes=["007", "c04", "c05"], test_classes=CLASSES[6:9]))
    assert found["train"] == ["1.5", "7", "yes"]
    assert found["val"] == ["007", "c04", "c05"]


@pytest.mark.parametrize(("listed", "folder"), [(7, "007"), (True, "yes"), (False, "no")])
def test_what_yaml_has_changed_is_named_with_the_remedy(listed: Any, folder: str, tmp_path: Path) -> None:
    root = rename(draw(tmp_path / "images", CLASSES[:9]), c00=folder)
    data = module(root, train_classes=[listed, "c01", "c02"], val_classes=CLASSES[3:6], test_classes=CLASSES[6:9])
    assert (
        f"{listed!r} of the train list has no folder; YAML reads a name that looks like a number or a boolean as one: put it "
        f"in quotes, as in {folder!r}"
    ) in message_of(data)


def test_the_command_line_takes_numbers_as_names(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--cfg", action="config")
    parser.add_class_arguments(ImageFolderDataModule, "data")
    (tmp_path / "c.yaml").write_text("data: {root: x, train_classes: [1, 007, b], val_classes: [2.5], test_classes: [yes]}")
    given = parser.parse_args([f"--cfg={tmp_path / 'c.yaml'}"]).data
    assert given.train_classes == [1, 7, "b"]
    assert given.val_classes == [2.5]


def test_a_list_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.txt")
    data = module(
        draw(tmp_path / "x", CLASSES[:9]), train_classes=tmp_path / "train.txt", val_classes=["c3"], test_classes=["c4"]
    )
    assert "train.txt (is a named pipe, not a file); it must have one name per line" in message_of(data, FileNotFoundError)
