"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from mamllit.runs import durable


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for content in ("one", b"two"):
        durable.write(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_the_bytes_are_on_the_disk_before_the_file_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a power cut leaves the old file or the new one: content, then name, then the folder that holds the name."""
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (done.append(name), original(*a))[1])
    durable.write(tmp_path / "file", "content")
    assert done == ["fsync", "replace", "fsync"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        durable.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_keep_goes_elsewhere_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").touch()  # a file where the folder should be
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    with pytest.warns(UserWarning, match=r"cannot write .*run/result\.json \(.*\); it is kept as .*temporary/mamllit-"):
        path = durable.keep(tmp_path / "run" / "result.json", "numbers")
    assert path is not None and path.read_text() == "numbers"


def test_keep_prints_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(durable, "write", full)
    with pytest.warns(UserWarning, match=r"its content is printed above"):
        assert durable.keep(tmp_path / "result.json", "numbers") is None
    assert "result.json:\nnumbers" in capsys.readouterr().out


def test_refusal_says_why(tmp_path: Path) -> None:
    assert durable.refusal(tmp_path / "new") is None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert durable.refusal(tmp_path / "file" / "run") == "Not a directory"
