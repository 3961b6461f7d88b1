"""The cache: what comes back, what is refused, a disk that is full, and writers that race."""

import json
import os
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mamllit.data.pool import ClassPool
from mamllit.data.sources.cache import CacheWriter, load_cache


def make_pool(counts: tuple[int, ...] = (2, 3, 1), seed: int = 0) -> ClassPool:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(counts), 1, 4, 5), generator=generator, dtype=torch.uint8)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ClassPool(images, offsets, tuple("abcdef"[: len(counts)]))


def save_cache(folder: Path, pools: dict[str, ClassPool], fingerprint: str) -> None:
    with CacheWriter(folder, fingerprint) as writer:
        for key, pool in pools.items():
            writer.add(key, pool.names, pool.counts.tolist(), tuple(pool.images.shape[1:]))
            for row in range(0, len(pool.images), 2):
                writer.write(key, row, pool.images[row : row + 2].numpy())
        writer.commit()


def assert_same(one: ClassPool, other: ClassPool) -> None:
    assert torch.equal(one.images, other.images)
    assert one.offsets.dtype == other.offsets.dtype == np.int64
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.names == other.names


def test_the_cache_gives_back_what_was_saved_without_a_warning(tmp_path: Path) -> None:
    pools = {"train": make_pool(), "test": make_pool((1, 4), seed=1)}
    save_cache(tmp_path / "deep" / "cache", pools, "v1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about arrays it may not write to
        loaded = load_cache(tmp_path / "deep" / "cache", "v1")
    assert loaded is not None and list(loaded) == ["train", "test"]
    for key, pool in pools.items():
        assert_same(loaded[key], pool)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cache"]


def test_writing_to_a_loaded_pool_leaves_the_file_alone(tmp_path: Path) -> None:
    save_cache(tmp_path / "cache", {"all": make_pool()}, "v1")
    first = load_cache(tmp_path / "cache", "v1")
    assert first is not None
    first["all"].images.zero_()
    second = load_cache(tmp_path / "cache", "v1")
    assert second is not None
    assert_same(second["all"], make_pool())


def test_any_fingerprint_is_taken_when_none_is_asked_for(tmp_path: Path) -> None:
    save_cache(tmp_path / "cache", {"all": make_pool()}, "v1")
    assert load_cache(tmp_path / "cache", None) is not None


def test_an_absent_or_outdated_cache_is_none_without_a_warning(tmp_path: Path) -> None:
    save_cache(tmp_path / "cache", {"all": make_pool()}, "v1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_cache(tmp_path / "nowhere", "v1") is None
        assert load_cache(tmp_path / "cache", "v2") is None


def truncate(cache: Path) -> None:
    with (cache / "all.npy").open("r+b") as file:
        file.truncate(140)


def flip_a_byte(cache: Path) -> None:
    data = bytearray((cache / "all.npy").read_bytes())
    data[-3] ^= 1
    (cache / "all.npy").write_bytes(data)


def spoil_the_json(cache: Path) -> None:
    (cache / "meta.json").write_text((cache / "meta.json").read_text()[:50])


def drop_a_key(cache: Path) -> None:
    meta = json.loads((cache / "meta.json").read_text())
    del meta["pools"]["all"]["offsets"]
    (cache / "meta.json").write_text(json.dumps(meta))


def change_the_offsets(cache: Path) -> None:
    meta = json.loads((cache / "meta.json").read_text())
    meta["pools"]["all"]["offsets"][-1] += 1
    (cache / "meta.json").write_text(json.dumps(meta))


def change_the_shape(cache: Path) -> None:
    meta = json.loads((cache / "meta.json").read_text())
    meta["pools"]["all"]["shape"] = [1, 2]
    (cache / "meta.json").write_text(json.dumps(meta))


def remove_the_array(cache: Path) -> None:
    (cache / "all.npy").unlink()


def remove_the_json(cache: Path) -> None:
    (cache / "meta.json").unlink()


DAMAGES = [
    (truncate, "all.npy has 140 bytes, expected 248"),
    (flip_a_byte, "all.npy does not match its checksum"),
    (spoil_the_json, "JSONDecodeError"),
    (drop_a_key, "KeyError: 'offsets'"),
    (change_the_offsets, "offsets must rise from 0 to the number of images"),
    (change_the_shape, "all.npy has shape"),
    (remove_the_array, "all.npy is missing"),
    (remove_the_json, "meta.json is missing"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_cache_is_none_with_a_warning_and_can_be_saved_again(
    damage: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    save_cache(cache, {"all": make_pool()}, "v1")
    damage(cache)
    with pytest.warns(UserWarning, match="the cache .* is damaged and will not be used") as caught:
        assert load_cache(cache, "v1") is None
    assert problem in str(caught[0].message)
    save_cache(cache, {"all": make_pool()}, "v1")
    loaded = load_cache(cache, "v1")
    assert loaded is not None
    assert_same(loaded["all"], make_pool())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("not a folder")
    with pytest.warns(UserWarning, match=r"is damaged and will not be used \(it is a file, not a folder\)"):
        assert load_cache(cache, "v1") is None
    with pytest.raises(NotADirectoryError):
        save_cache(cache, {"all": make_pool()}, "v1")
    assert cache.read_text() == "not a folder"
    assert list(tmp_path.iterdir()) == [cache]


def test_an_interrupted_save_leaves_the_old_cache_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cache(tmp_path / "cache", {"all": make_pool()}, "v1")

    def full_disk(file: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("mamllit.data.sources.cache._flush", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_cache(tmp_path / "cache", {"all": make_pool(seed=1)}, "v2")
    loaded = load_cache(tmp_path / "cache", "v1")
    assert loaded is not None
    assert_same(loaded["all"], make_pool())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_later_save_replaces_another_fingerprint(tmp_path: Path) -> None:
    save_cache(tmp_path / "cache", {"all": make_pool()}, "v1")
    save_cache(tmp_path / "cache", {"all": make_pool(seed=1)}, "v2")
    loaded = load_cache(tmp_path / "cache", "v2")
    assert loaded is not None
    assert_same(loaded["all"], make_pool(seed=1))


@pytest.mark.parametrize("same", [True, False], ids=["same fingerprint", "different fingerprints"])
def test_savers_at_once_all_end_well(same: bool, tmp_path: Path) -> None:
    cache, writers = tmp_path / "cache", 4
    pools = {"v1" if same else f"v{i}": make_pool(seed=0 if same else i) for i in range(writers)}

    def work(i: int) -> None:
        fingerprint = "v1" if same else f"v{i}"
        for _ in range(25):
            save_cache(cache, {"all": pools[fingerprint]}, fingerprint)
            loaded = load_cache(cache, fingerprint)
            if loaded is not None:  # another one's may have taken its place
                assert_same(loaded["all"], pools[fingerprint])

    with warnings.catch_warnings(), ThreadPoolExecutor(writers) as threads:
        warnings.simplefilter("ignore")  # a reader may meet a folder that is just being replaced
        list(threads.map(work, range(writers)))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert any(load_cache(cache, fingerprint) is not None for fingerprint in pools)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: swap(folder, "meta.json", None), "is a named pipe, not a file"),
        (lambda folder: swap(folder, "train.npy", None), "is a named pipe, not a file"),
        (
            lambda folder: rewrite(folder, "train", "../../outside"),
            "a pool is named '../../outside', which is outside the cache",
        ),
        (lambda folder: retype(folder), "train.npy holds object, expected uint8 in row order"),
    ],
    ids=["description is a pipe", "array is a pipe", "name that leaves", "objects"],
)
def test_a_forged_cache_is_not_used(spoil: Callable[[Path], None], problem: str, tmp_path: Path) -> None:
    save_cache(tmp_path / "cache", {"train": make_pool()}, "x")
    spoil(tmp_path / "cache")
    with pytest.warns(UserWarning, match=rf"is damaged and will not be used \(.*{problem}"):
        assert load_cache(tmp_path / "cache", "x") is None


def swap(folder: Path, name: str, _: None) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def rewrite(folder: Path, old: str, new: str) -> None:
    path = folder / "meta.json"
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


def retype(folder: Path) -> None:
    """The array's header says that it holds objects; its length and checksum are made to fit."""
    path, meta = folder / "train.npy", json.loads((folder / "meta.json").read_text())
    data = path.read_bytes().replace(b"'|u1'", b"'|O8'")
    path.write_bytes(data)
    meta["pools"]["train"]["checksum"] = zlib.crc32(data[-(2**20) :], zlib.crc32(data[: 2**20]))
    (folder / "meta.json").write_text(json.dumps(meta))
