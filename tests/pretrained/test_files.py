"""The file of a checkpoint: round trip, what is refused, and how it is found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mamllit.pretrained import files
from mamllit.pretrained.files import Checkpoint, find, is_meant, names, read, write

CHECKPOINT = Checkpoint("toy", {"report_step": 3}, {"class_path": "x"}, {"metric": "accuracy"})


def tensors() -> dict[str, torch.Tensor]:
    return {"b.weight": torch.randn(3, 4), "a.bias": torch.randn(5)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder of checkpoints, with two in it."""
    monkeypatch.setattr(files, "FOLDER", tmp_path / "checkpoints")
    for name in ("maml_omniglot_5way_1shot", "maml_omniglot_20way_1shot"):
        write(tmp_path / "checkpoints" / f"{name}.safetensors", CHECKPOINT, tensors())
    return tmp_path / "checkpoints"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, weights = tmp_path / "new" / "toy.safetensors", tensors()
    size = write(path, CHECKPOINT, weights)
    found, read_back = read(path)
    assert found == CHECKPOINT
    assert found.steps == 3
    assert size == path.stat().st_size
    assert set(read_back) == set(weights)
    assert all(torch.equal(read_back[name], weights[name]) for name in weights)
    assert [p.name for p in path.parent.iterdir()] == ["toy.safetensors"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    weights = tensors()
    write(tmp_path / "1.safetensors", CHECKPOINT, weights)
    write(tmp_path / "2.safetensors", CHECKPOINT, dict(reversed(weights.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_float16_is_rounded_and_read_as_float32(tmp_path: Path) -> None:
    weights = {"w": torch.randn(1000)}
    half = Checkpoint("toy", {}, {}, {}, stored_as="float16")
    small, large = (write(tmp_path / f"{c.stored_as}.safetensors", c, weights) for c in (half, CHECKPOINT))
    assert large - small > 1900
    found, read_back = read(tmp_path / "float16.safetensors")
    assert found.stored_as == "float16"
    assert read_back["w"].dtype == torch.float32
    assert torch.equal(read_back["w"], weights["w"].half().float())
    assert not torch.equal(read_back["w"], weights["w"])


def test_a_file_above_the_limit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    with pytest.raises(
        ValueError, match=r"toy\.safetensors would have 4\d\d,\d{3} bytes, more than the limit of 400,000; store"
    ):
        write(path, CHECKPOINT, {"w": torch.zeros(100_000)}, limit=400_000)
    assert list(tmp_path.iterdir()) == []
    assert write(path, CHECKPOINT, {"w": torch.zeros(100_000)}) > 400_000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.safetensors"
    write(path, CHECKPOINT, tensors())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, CHECKPOINT, tensors())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_float16_leaves_alone_what_is_no_fraction_and_what_it_cannot_hold(tmp_path: Path) -> None:
    kept = {
        "count": torch.tensor(2**24 + 1),
        "bytes": torch.tensor([3, 255], dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "large": torch.tensor([1e5, 1.0]),
        "small": torch.tensor([1.5e-7, -3e-8]),
        "wide": torch.tensor([1e300], dtype=torch.float64),
        "spoilt": torch.tensor([float("nan"), 1.0]),
        "none": torch.zeros(0, 3),
    }
    weights = {**kept, "weight": torch.randn(50) / 100, "zero": torch.zeros(3)}
    write(tmp_path / "half.safetensors", Checkpoint("toy", {}, {}, {}, stored_as="float16"), weights)
    found = read(tmp_path / "half.safetensors")[1]
    for name, value in kept.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found["weight"], weights["weight"].half().float())
    with safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (no dict)
    assert {name for name, dtype in stored.items() if dtype == torch.float16} == {"weight", "zero", "none"}
    write(tmp_path / "whole.safetensors", CHECKPOINT, {"n": torch.tensor([2**24 + 1]), "w": torch.randn(2).double()})
    assert {name: value.dtype for name, value in read(tmp_path / "whole.safetensors")[1].items()} == {
        "n": torch.int64,
        "w": torch.float32,
    }


@pytest.mark.parametrize("what", [b"weight", b"step", None])
def test_one_flipped_bit_is_found(tmp_path: Path, what: bytes | None) -> None:
    """In a tensor's name, in the metadata, and in a number."""
    path = tmp_path / "toy.safetensors"
    write(path, CHECKPOINT, tensors())
    content = bytearray(path.read_bytes())
    at = -2 if what is None else content.index(what)
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.safetensors has changed since it was written: its digest differs; copy or"):
        read(path)


def test_a_file_from_before_the_digest_is_read(tmp_path: Path) -> None:
    entries = {"name": "old", "model": {}, "data": {}, "result": {}, "stored_as": "float32", "format": 1}
    save_file({"w": torch.ones(2)}, tmp_path / "old.safetensors", {"mamllit": json.dumps(entries)})
    assert read(tmp_path / "old.safetensors")[0] == Checkpoint("old", {}, {}, {}, format=1)
    save_file({"w": torch.ones(2)}, tmp_path / "new.safetensors", {"mamllit": json.dumps({**entries, "format": 2})})
    with pytest.raises(ValueError, match="its digest differs"):
        read(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "recursion"),
        ("[1]", "cannot convert"),
        ('{"name": "a", "model": [], "data": {}, "result": {}, "format": 1}', r"model is \[\]; it must be a mapping"),
    ],
)
def test_metadata_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "odd.safetensors", {"mamllit": text})
    with pytest.raises(ValueError, match=rf"(?s)odd\.safetensors: the metadata entry 'mamllit' cannot be used: .*{message}"):
        read(tmp_path / "odd.safetensors")


def test_names_are_found_in_the_package(folder: Path) -> None:
    assert names() == ["maml_omniglot_20way_1shot", "maml_omniglot_5way_1shot"]
    assert find("maml_omniglot_5way_1shot") == folder / "maml_omniglot_5way_1shot.safetensors"
    assert find(folder / "maml_omniglot_5way_1shot.safetensors").parent == folder


@pytest.mark.usefixtures("folder")
def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"^no checkpoint is named 'maml_omniglot_5way_1shots' \(did you mean 'maml_omniglot_5way_1shot' or "
        r"'maml_omniglot_20way_1shot'\?\); the names are: maml_omniglot_20way_1shot, maml_omniglot_5way_1shot\. `mamllit ",
    ):
        find("maml_omniglot_5way_1shots")


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"^no checkpoint file at {tmp_path}/x\.safetensors; this copy of mamllit comes"
    ):
        find(tmp_path / "x.safetensors")


def test_which_ckpt_paths_mean_a_checkpoint_of_this_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert [text for text in ("last", "best", "hpc", "nowhere.ckpt", "runs/a", "registry:a", "mine") if is_meant(text)] == []
    assert is_meant("maml_omniglot_5way_1shot")
    assert is_meant("runs/a.safetensors")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    size = write(path, CHECKPOINT, tensors())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"toy\.safetensors \({size - 10} bytes\) cannot be read as safetensors: "):
        read(path)


def test_a_file_from_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors has no metadata entry 'mamllit': it was not written by"):
        read(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"format": 3}, "its format is 3, and this mamllit reads up to 2: install a newer one"),
        ({"format": 1}, "missing 4 required positional arguments"),
        ({"name": "a"}, "'format'"),
        (None, "Expecting value"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused(tmp_path: Path, metadata: object, problem: str) -> None:
    text = "" if metadata is None else json.dumps(metadata)
    save_file(tensors(), tmp_path / "toy.safetensors", {"mamllit": text})
    with pytest.raises(ValueError, match=rf"toy\.safetensors: the metadata entry 'mamllit' cannot be used: .*{problem}"):
        read(tmp_path / "toy.safetensors")
