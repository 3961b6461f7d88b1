"""Whole checkpoints, and the newest of them."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from mamllit.callbacks import DurableCheckpointIO
from mamllit.runs import durable
from mamllit.runs.checkpoint_io import newest, read


def saved(io: DurableCheckpointIO, path: Path, step: int, **more: Any) -> Path:
    io.save_checkpoint({"global_step": step, "weights": torch.full((50,), float(step)), **more}, path)
    return path


def test_the_last_of_an_earlier_step_is_kept(tmp_path: Path) -> None:
    io, last = DurableCheckpointIO(), tmp_path / "last.ckpt"
    for step in (10, 20, 20):
        saved(io, last, step)
    assert [read(tmp_path / f"{name}.ckpt")["global_step"] for name in ("last", "previous")] == [20, 10]  # type: ignore[index]
    saved(DurableCheckpointIO(), last, 30)  # another process
    assert [read(tmp_path / f"{name}.ckpt")["global_step"] for name in ("last", "previous")] == [30, 20]  # type: ignore[index]


@pytest.mark.parametrize("damage", ["cut off", "altered", "empty"])
def test_a_damaged_newest_is_passed_over_with_a_warning(damage: str, tmp_path: Path) -> None:
    io = DurableCheckpointIO()
    for step in (10, 20):
        saved(io, tmp_path / "last.ckpt", step)
    whole = (tmp_path / "last.ckpt").read_bytes()
    at = whole.index(torch.full((50,), 20.0).numpy().tobytes())
    spoilt = {"cut off": whole[:-100], "altered": whole[:at] + b"x" + whole[at + 1 :], "empty": b""}[damage]
    (tmp_path / "last.ckpt").write_bytes(spoilt)
    with pytest.warns(
        UserWarning, match=r"last\.ckpt cannot be read \(truncated or altered\); using previous\.ckpt of step 10"
    ):
        assert newest(tmp_path) == tmp_path / "previous.ckpt"


def test_without_a_whole_one_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    with pytest.warns(UserWarning, match=r"last\.ckpt cannot be read \(truncated or altered\); there is no other$"):
        assert newest(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cannot be read as a checkpoint; it may be cut off or something else"),
        (b"PK", "cannot be read as a checkpoint"),
        ({"weights": torch.zeros(2)}, "is no checkpoint of a run of `mamllit fit`"),
        (torch.zeros(2), "is no checkpoint of a run of `mamllit fit`"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(content: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"^{path} {text}"):
        DurableCheckpointIO().load_checkpoint(path)


def test_a_last_step_without_its_validation_is_not_the_start(tmp_path: Path) -> None:
    io = DurableCheckpointIO()
    saved(io, tmp_path / "last.ckpt", 10)
    saved(io, tmp_path / "last.ckpt", 20, validation_due=True)
    assert newest(tmp_path, max_steps=20) == tmp_path / "previous.ckpt"
    assert newest(tmp_path, max_steps=30) == tmp_path / "last.ckpt"


def test_a_full_disk_is_said_and_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = DurableCheckpointIO()
    last = saved(io, tmp_path / "last.ckpt", 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        with pytest.warns(
            UserWarning, match=r"cannot write .*last\.ckpt \(No space left on device\); the previous one is untouc"
        ):
            saved(io, last, 20)
    assert io.failed == {str(last): "No space left on device"}
    assert read(last)["global_step"] == 10  # type: ignore[index]
    saved(io, last, 30)
    assert io.failed == {}


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a local checkpoint takes none: leave it out"):
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt", {"key": 1})
