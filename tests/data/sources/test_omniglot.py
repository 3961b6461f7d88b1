"""Omniglot from folders, zips, the cache and a server: a small set drawn here, and the real one where there is one."""

import errno
import functools
import hashlib
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_omniglot import DRAWINGS, NAMES, PARTS, draw, drawing, load, pack

from mamllit.data.sources import omniglot as omniglot_source
from mamllit.data.sources.cache import CacheWriter
from mamllit.data.sources.omniglot import decode, load_characters, load_omniglot, split_characters


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one element for each PNG decoded."""
    calls: list[int] = []

    def counting(png: bytes, image_size: int, resize: str) -> NDArray[np.uint8]:
        calls.append(1)
        return decode(png, image_size, resize)

    monkeypatch.setattr(omniglot_source, "decode", counting)
    return calls


def png_of(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_nearest_takes_the_middle_of_each_cell_and_ink_is_255() -> None:
    rows = [int((i + 0.5) * 3.75) for i in range(28)]  # 105 / 28 = 3.75 source pixels per pixel
    paper = np.asarray(drawing(0, 0))
    result = decode(png_of(drawing(0, 0)), 28, "nearest")
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.where(paper[np.ix_(rows, rows)], 0, 255))


def test_nearest_is_what_lanczos_does_to_a_1_bit_image() -> None:
    authors = np.asarray(drawing(0, 0).resize((28, 28), resample=Image.Resampling.LANCZOS))
    assert np.array_equal(decode(png_of(drawing(0, 0)), 28, "nearest"), np.where(authors, 0, 255))


def test_antialias_turns_to_grey_first() -> None:
    grey = np.asarray(drawing(0, 0).convert("L").resize((28, 28), Image.Resampling.LANCZOS))
    result = decode(png_of(drawing(0, 0)), 28, "antialias")
    assert np.array_equal(result, 255 - grey)
    assert len(np.unique(result)) > 20


@pytest.mark.parametrize("resize", ["nearest", "antialias"])
def test_at_full_size_nothing_changes(resize: str) -> None:
    assert np.array_equal(decode(png_of(drawing(1, 1)), 105, resize), np.where(np.asarray(drawing(1, 1)), 0, 255))


def test_folders_give_classes_and_drawings_by_name(tmp_path: Path) -> None:
    pool = load(draw(tmp_path))
    assert pool.names == tuple(NAMES)
    assert pool.offsets.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert pool.images.shape == (18, 1, 28, 28)
    for c in range(len(NAMES)):
        for i in range(DRAWINGS):
            expected = decode(png_of(drawing(c, i)), 28, "nearest")
            assert np.array_equal(pool.images[c * DRAWINGS + i, 0].numpy(), expected)


def test_zips_and_a_mixture_give_the_same(tmp_path: Path) -> None:
    folders = load(draw(tmp_path / "folders"))
    zips = load(pack(draw(tmp_path / "zips")))
    mixed = draw(tmp_path / "mixed")
    shutil.rmtree(mixed / "images_background")
    shutil.copy(tmp_path / "zips" / "images_background.zip", mixed)
    for other in (zips, load(mixed)):
        assert torch.equal(folders.images, other.images)
        assert folders.names == other.names


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    root = draw(tmp_path)
    (root / "images_background" / NAMES[2] / "._0000_01.png").write_bytes(b"what macOS leaves behind")
    (root / "images_background" / ".DS_Store").write_bytes(b"")
    assert load(root).images.shape[0] == 18
    shutil.rmtree(root / ".mamllit-cache")
    assert load(pack(root)).images.shape[0] == 18


def test_the_cache_is_used_until_the_source_changes(tmp_path: Path, decoded: list[int]) -> None:
    first = load(draw(tmp_path))
    again = load(tmp_path)
    assert len(decoded) == 18
    assert torch.equal(first.images, again.images)
    load(tmp_path, resize="antialias")
    load(tmp_path, image_size=14)
    assert len(decoded) == 3 * 18  # other settings, other caches
    load(tmp_path)
    assert len(decoded) == 3 * 18
    folder = tmp_path / "images_background" / NAMES[2]
    (folder / "0002_01.png").rename(folder / "0002_09.png")
    changed = load(tmp_path)
    assert len(decoded) == 4 * 18
    assert torch.equal(changed.images[8], first.images[6])  # now the last drawing of its character
    pack(tmp_path)
    load(tmp_path)
    assert len(decoded) == 5 * 18
    with (tmp_path / "images_background.zip").open("ab") as file:
        file.write(b"\0")
    load(tmp_path)
    assert len(decoded) == 6 * 18


def test_the_cache_alone_will_do(tmp_path: Path, decoded: list[int]) -> None:
    first = load(draw(tmp_path))
    for part in PARTS:
        shutil.rmtree(tmp_path / part)
    assert torch.equal(load(tmp_path).images, first.images)
    assert len(decoded) == 18


def test_a_damaged_cache_is_built_again(tmp_path: Path, decoded: list[int]) -> None:
    load(draw(tmp_path))
    (tmp_path / ".mamllit-cache" / "omniglot-28-nearest" / "meta.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged and will not be used"):
        load(tmp_path)
    load(tmp_path)
    assert len(decoded) == 2 * 18


def test_a_cache_of_other_characters_is_not_used(tmp_path: Path) -> None:
    load(draw(tmp_path))
    for part in PARTS:
        shutil.rmtree(tmp_path / part)
    with pytest.raises(FileNotFoundError, match="Omniglot is not in"):
        load_characters(tmp_path, NAMES[:3], DRAWINGS, 28, "nearest", False)


def test_a_root_that_cannot_be_written_works_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(CacheWriter, "__init__", refuse)
    with pytest.warns(UserWarning, match=r"Omniglot in .*: cannot write the cache .*Read-only file system.*kept in memory"):
        assert load(draw(tmp_path)).num_classes == 6


def test_a_file_where_the_cache_should_be_works_from_memory_too(tmp_path: Path) -> None:
    (draw(tmp_path) / ".mamllit-cache").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot write the cache"):
        assert load(tmp_path).num_classes == 6


@pytest.mark.parametrize(
    ("split", "sizes"), [("vinyals", [1028, 172, 423]), ("maml", [1100, 100, 423]), ("alphabets", [964, 307, 352])]
)
def test_the_splits_are_complete_disjoint_and_fixed(split: str, sizes: list[int]) -> None:
    parts = split_characters(split)
    assert list(parts) == ["train", "val", "test"]
    assert [len(names) for names in parts.values()] == sizes
    assert all(names == sorted(names) for names in parts.values())
    assert len(set().union(*parts.values())) == 1623
    assert parts == split_characters(split)


def test_the_maml_split_is_the_same_everywhere() -> None:
    names = "\n".join(split_characters("maml")["test"])
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "062c5cfc90f9445b"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The zips of the small set on a server that BASE_URL points to; their folder."""
    folder = pack(draw(tmp_path / "served"))
    md5 = {p: hashlib.md5((folder / f"{p}.zip").read_bytes(), usedforsecurity=False).hexdigest() for p in PARTS}
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        monkeypatch.setattr(omniglot_source, "BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(omniglot_source, "ZIP_MD5", md5)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download_fetches_what_is_missing(served: Path, tmp_path: Path) -> None:
    root = tmp_path / "new"
    pool = load(root, download=True)
    assert sorted(path.name for path in root.iterdir()) == [".mamllit-cache", *(f"{part}.zip" for part in PARTS)]
    assert torch.equal(pool.images, load(draw(tmp_path / "drawn")).images)


def test_download_leaves_alone_what_is_there(served: Path, tmp_path: Path) -> None:
    root = draw(tmp_path / "half")
    shutil.rmtree(root / "images_evaluation")
    (served / "images_background.zip").unlink()  # would be an error if it were asked for
    assert load(root, download=True).num_classes == 6


def test_a_download_that_fails_says_where_to_put_the_file(served: Path, tmp_path: Path) -> None:
    (served / "images_evaluation.zip").unlink()
    with pytest.raises(RuntimeError, match=r"images_evaluation.zip: the server answered 404 .*put the file at .*new/im"):
        load(tmp_path / "new", download=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The real data set under two fresh folders: as zips, and as extracted folders."""
    if not (home := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    zips, folders = tmp_path_factory.mktemp("zips"), tmp_path_factory.mktemp("folders")
    for part in PARTS:
        source = Path(home).expanduser().resolve()
        if (source / f"{part}.zip").exists():
            (zips / f"{part}.zip").symlink_to(source / f"{part}.zip")
            shutil.unpack_archive(source / f"{part}.zip", folders)
        else:
            shutil.make_archive(str(zips / part), "zip", root_dir=source, base_dir=part)
            (folders / part).symlink_to(source / part)
    return zips, folders


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("split", "sizes"), [("vinyals", [1028, 172, 423]), ("maml", [1100, 100, 423])])
def test_real_counts_and_pixels(split: str, sizes: list[int], real: tuple[Path, Path]) -> None:
    pools = load_omniglot(real[0], split)
    assert [pool.num_classes for pool in pools.values()] == sizes
    assert sum(len(pool.images) for pool in pools.values()) == 32460
    for pool in pools.values():
        assert pool.images.shape[1:] == (1, 28, 28)
        assert (pool.counts == 20).all()
        assert np.unique(pool.images.numpy()).tolist() == [0, 255]
        assert 0.05 < (pool.images > 0).float().mean() < 0.12  # ink, not paper


@pytest.mark.slow
@pytest.mark.real_data
def test_real_zips_equal_real_folders_and_the_cache_is_fast(real: tuple[Path, Path]) -> None:
    zips, folders = (load_omniglot(root) for root in real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.perf_counter()
        cached = load_omniglot(real[0])
        seconds = time.perf_counter() - start
    assert seconds < 1
    for key, pool in zips.items():
        for other in (folders[key], cached[key]):
            assert pool.names == other.names
            assert torch.equal(pool.images, other.images)
