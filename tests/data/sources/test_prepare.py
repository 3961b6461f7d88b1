"""From a source to pools: what is decoded when, a disk that is full, images that are spoilt, and processes at once."""

import errno
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mamllit.data.pool import ClassPool
from mamllit.data.sources import prepare
from mamllit.data.sources.cache import CacheWriter, load_cache
from mamllit.data.sources.pixels import decode_file
from mamllit.data.sources.prepare import load_pools
from mamllit.data.sources.source import Item, Source, classes_in, fingerprint

SIDE = 8


def draw(root: Path, classes: int = 3, images: int = 50) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(images + c):
            noise = np.random.default_rng([c, i]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / f"class{c}" / f"{i:03d}.png")
    return root


def source_of(root: Path) -> Source:
    files = classes_in(root, [".png"])
    every = [file for found in files.values() for file in found]
    items = {c: [Item(f.path, partial(decode_file, f.path, SIDE, 3, False)) for f in found] for c, found in files.items()}
    return Source(
        name=f"pictures in {root}",
        fingerprint=fingerprint("v1", root, every),
        shape=(3, SIDE, SIDE),
        images=len(every),
        pools={"all": lambda: items},
        advice="Draw them again.",
    )


def load(root: Path) -> ClassPool:
    return load_pools(source_of(root), root / ".cache" / "pictures")["all"]


def is_right(pool: ClassPool, root: Path) -> bool:
    paths = sorted(root.glob("class*/*.png"))
    expected = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    return np.array_equal(pool.images.numpy(), expected)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one element for each time that the images are decoded."""
    calls: list[int] = []
    original = prepare._decode
    monkeypatch.setattr(prepare, "_decode", lambda *arguments: (calls.append(1), original(*arguments)))
    return calls


def test_classes_of_different_sizes_come_in_order_and_are_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    pool = load(draw(tmp_path))
    assert pool.names == ("class0", "class1", "class2")
    assert pool.counts.tolist() == [50, 51, 52]
    assert is_right(pool, tmp_path)
    assert torch.equal(load(tmp_path).images, pool.images)
    assert len(decoded) == 1
    assert sorted(path.name for path in (tmp_path / ".cache").iterdir()) == ["pictures", "pictures.lock"]


@pytest.mark.parametrize("change", ["content", "touched", "added", "removed", "renamed"])
def test_the_cache_is_built_again_when_the_source_changes(change: str, tmp_path: Path, decoded: list[int]) -> None:
    load(draw(tmp_path))
    path = tmp_path / "class1" / "000.png"
    if change == "content":
        Image.new("RGB", (SIDE, SIDE), "red").save(path)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "class1" / "new.png")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "class1" / "zzz.png")
    assert is_right(load(tmp_path), tmp_path)
    assert len(decoded) == 2


def test_a_folder_that_was_moved_keeps_its_cache(tmp_path: Path, decoded: list[int]) -> None:
    load(draw(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    load(tmp_path / "there")
    assert len(decoded) == 1


def test_a_truncated_cache_is_built_again(tmp_path: Path, decoded: list[int]) -> None:
    load(draw(tmp_path))
    os.truncate(tmp_path / ".cache" / "pictures" / "all.npy", 1000)
    with pytest.warns(UserWarning, match="is damaged and will not be used .*has 1000 bytes"):
        pool = load(tmp_path)
    assert is_right(pool, tmp_path)
    assert len(decoded) == 2


def test_spoilt_images_are_listed_in_one_error_with_their_number(tmp_path: Path) -> None:
    paths = sorted(draw(tmp_path).glob("*/*.png"))
    os.truncate(paths[0], 60)
    paths[70].write_bytes(b"no picture")
    paths[150].unlink()
    paths[150].symlink_to("nowhere")
    paths[151].unlink()
    paths[151].mkdir()
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"pictures in {tmp_path}: images that cannot be used (4):\n"
        f"  - {paths[0]}: image file is truncated\n"
        f"  - {paths[70]}: cannot identify image file\n"
        f"  - {paths[150]}: No such file or directory\n"
        f"  - {paths[151]}: Is a directory\n"
        "Draw them again."
    )
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["pictures.lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_listed(tmp_path: Path) -> None:
    path = draw(tmp_path) / "class0" / "000.png"
    path.chmod(0)
    with pytest.raises(ValueError, match=r"000.png: Permission denied"):
        load(tmp_path)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    for path in draw(tmp_path).glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be used \(153\):\n(  - .*\n){10}  - and 143 more\nDraw"):
        load(tmp_path)


def test_a_listing_that_fails_is_no_failure_of_the_cache(tmp_path: Path) -> None:
    def gone() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "list.txt")

    source = Source("pictures", "v1", (3, 2, 2), 1, {"all": gone}, "Draw them again.")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"pictures: cannot be read \(.*list.txt'\). Draw them again."):
        load_pools(source, tmp_path / "cache")


# ---- a cache that cannot be written --------------------------------------------------------------------------------


def fill_the_disk_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on the disk takes half of what is written, then nothing."""
    done: list[int] = []
    original = os.pwrite

    def pwrite(file: int, data: memoryview, at: int) -> int:
        done.append(1)
        if len(done) == writes + 1:
            return original(file, data[: len(data) // 2], at)
        if len(done) > writes + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    draw(tmp_path)
    with monkeypatch.context() as patch:
        fill_the_disk_after(writes, patch)
        with pytest.warns(UserWarning, match=r"cannot write the cache .*No space left on device.*free some space"):
            pool = load(tmp_path)
    assert is_right(pool, tmp_path)  # from memory
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["pictures.lock"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_right(load(tmp_path), tmp_path)
    assert len(decoded) == 3


def test_a_full_disk_keeps_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    load(tmp_path)
    old = source_of(tmp_path).fingerprint
    os.utime(tmp_path / "class0" / "000.png", ns=(1, 1))
    fill_the_disk_after(1, monkeypatch)
    with pytest.warns(UserWarning, match="No space left"):
        load(tmp_path)
    pools = load_cache(tmp_path / ".cache" / "pictures", old)
    assert pools is not None and is_right(pools["all"], tmp_path)


def test_many_images_are_not_kept_in_memory_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    monkeypatch.setattr(prepare, "IN_MEMORY", 1000)
    fill_the_disk_after(0, monkeypatch)
    with pytest.raises(OSError, match=r"(?s)cannot write the cache .*No space left.*too much to keep in memory instead: free"):
        load(tmp_path)


def test_too_little_space_is_seen_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"953,674 MiB are needed, [\d,]+ MiB are free"):
        CacheWriter(tmp_path / "cache", "v1", need=10**12)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_small_disk_takes_a_cache_or_none(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw(tmp_path / "images", classes=15)  # 164 kB of pixels
    monkeypatch.setattr("mamllit.data.sources.cache.shutil.disk_usage", lambda _: FREE)
    with pytest.warns(UserWarning, match="No space left on device"):
        pool = load_pools(source_of(root), small_disk / "pictures")["all"]
    assert is_right(pool, root)
    assert [path.name for path in small_disk.iterdir()] == ["pictures.lock"]


class FREE:
    free = 2**60


# ---- several processes ---------------------------------------------------------------------------------------------

BUILD = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {here!r})
    import test_prepare
    from mamllit.data.sources import prepare
    original = prepare._decode
    def decode(*arguments):
        print("decodes", flush=True)
        time.sleep(1)
        original(*arguments)
    prepare._decode = decode
    root = Path(sys.argv[1])
    assert test_prepare.is_right(test_prepare.load(root), root)
    print("right", flush=True)
"""


def builder(root: Path) -> subprocess.Popen:
    code = textwrap.dedent(BUILD.format(here=str(Path(__file__).parent)))
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_at_once_decode_once(tmp_path: Path) -> None:
    draw(tmp_path)
    outputs = [process.communicate(timeout=120)[0] for process in [builder(tmp_path), builder(tmp_path)]]
    assert sorted(outputs) == ["decodes\nright\n", "right\n"]
    assert sorted(path.name for path in (tmp_path / ".cache").iterdir()) == ["pictures", "pictures.lock"]


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = builder(draw(tmp_path))
    assert process.stdout is not None and process.stdout.readline() == "decodes\n"
    process.kill()
    process.communicate()
    assert any(path.name.startswith("pictures.tmp-") for path in (tmp_path / ".cache").iterdir())
    assert is_right(load(tmp_path), tmp_path)
    assert sorted(path.name for path in (tmp_path / ".cache").iterdir()) == ["pictures", "pictures.lock"]


def test_without_locks_every_process_builds_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert is_right(load(draw(tmp_path)), tmp_path)


def test_a_cache_that_others_keep_replacing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "load_cache", lambda *_: None)
    with pytest.warns(UserWarning, match="another process has replaced it"):
        assert is_right(load(draw(tmp_path)), tmp_path)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    draw(tmp_path / "root")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "root" / ".cache").mkdir()
    (tmp_path / "root" / ".cache" / "pictures.lock").symlink_to(tmp_path / "victim")
    with pytest.warns(
        UserWarning, match=r"pictures\.lock is a link to .*/victim, which is not followed: remove it\); the images"
    ):
        load(tmp_path / "root")
    assert (tmp_path / "victim").read_text() == "mine"
