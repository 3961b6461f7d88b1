"""Omniglot that is missing, damaged or asked for wrongly: what each error names."""

import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from small_omniglot import NAMES, PARTS, draw, drawing, load, pack

from mamllit.data.sources import omniglot as omniglot_source
from mamllit.data.sources.omniglot import load_omniglot


def message_of(root: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(root)
    return str(caught.value)


def test_nothing_found_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path)
    cache = tmp_path / ".mamllit-cache" / "omniglot-28-nearest"
    assert str(caught.value) == (
        f"Omniglot is not in {tmp_path}; looked for:\n"
        f"  - a cache of an earlier run, {cache}\n"
        f"  - {tmp_path}/images_background/ or {tmp_path}/images_background.zip\n"
        f"  - {tmp_path}/images_evaluation/ or {tmp_path}/images_evaluation.zip\n"
        "Name their folder with --data.root, set `download: true`, or put the two zips there by hand, from "
        f"{omniglot_source.BASE_URL}/."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not in .*nowhere \(this folder does not exist\); looked for"):
        load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.filterwarnings("error")  # it has no cache that could be damaged
def test_a_file_in_the_place_of_the_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"not in \S+/file \(this is no folder\); looked for"):
        load(tmp_path / "file")


def test_half_of_the_data_names_the_other_half(tmp_path: Path) -> None:
    shutil.rmtree(draw(tmp_path) / "images_evaluation")
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path)
    assert "images_evaluation.zip" in str(caught.value)
    assert "images_background/ or" not in str(caught.value)


@pytest.mark.parametrize("asked", [".", "here/images_background"])
def test_a_root_one_off_is_pointed_out(asked: str, tmp_path: Path) -> None:
    draw(tmp_path / "here")
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / asked)
    assert f"There seems to be something in {tmp_path / 'here'}: set `root` to that folder?" in str(caught.value)


def test_truncated_zips_are_named_together(tmp_path: Path) -> None:
    pack(draw(tmp_path))
    for part in PARTS:
        os.truncate(tmp_path / f"{part}.zip", 2000)
    message = message_of(tmp_path)
    for part in PARTS:
        assert f"{tmp_path / part}.zip (2000 bytes) is not a complete zip file, perhaps truncated (File is not" in message
    assert "Delete what is damaged and set `download: true`, or extract the original zips again." in message


def test_a_zip_with_spoilt_bytes_names_the_drawing(tmp_path: Path) -> None:
    path = pack(draw(tmp_path)) / "images_evaluation.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("images_evaluation/Linear_B/character01/0000_02.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 500] ^= 255
    path.write_bytes(data)
    message = message_of(tmp_path)
    assert "images that cannot be used (1):\n  - Linear_B/character01/0000_02.png: " in message


def test_missing_and_incomplete_characters_are_named_together(tmp_path: Path) -> None:
    root = draw(tmp_path)
    shutil.rmtree(root / "images_background" / NAMES[4])
    (root / "images_background" / NAMES[2] / "0002_02.png").unlink()
    shutil.copy(root / "images_evaluation" / NAMES[0] / "0000_01.png", root / "images_evaluation" / NAMES[0] / "x.png")
    assert message_of(root) == (
        f"Omniglot in {root}/images_background and {root}/images_evaluation:\n"
        "  - missing characters, 1 of 6: Runes/character01\n"
        "  - Linear_B/character01 has 4 PNGs, expected 3\n"
        "  - Ogham/character01 has 2 PNGs, expected 3\n"
        "Delete what is damaged and set `download: true`, or extract the original zips again."
    )
    assert [path.name for path in (root / ".mamllit-cache").iterdir()] == ["omniglot-28-nearest.lock"]


def test_drawings_that_cannot_be_used_are_named_together(tmp_path: Path) -> None:
    root = draw(tmp_path)
    folder = root / "images_background" / NAMES[2]
    drawing(0, 0, side=28).save(folder / "0002_01.png")
    drawing(0, 0).convert("L").save(folder / "0002_02.png")
    (folder / "0002_03.png").write_bytes(b"no picture")
    os.truncate(root / "images_evaluation" / NAMES[1] / "0001_01.png", 300)
    message = message_of(root)
    assert "images that cannot be used (4):" in message
    assert "Ogham/character01/0002_01.png: 28x28 pixels of mode '1', expected 105x105 of mode '1'" in message
    assert "Ogham/character01/0002_02.png: 105x105 pixels of mode 'L', expected 105x105 of mode '1'" in message
    assert "Ogham/character01/0002_03.png: cannot identify image file" in message
    assert "Linear_B/character02/0001_01.png: image file is truncated" in message


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    root = draw(tmp_path)
    for path in sorted(root.glob("*/*/*/*.png"))[:12]:
        path.write_bytes(b"")
    assert "  - and 2 more\n" in message_of(root)


def test_unknown_settings_are_named_together_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_omniglot(tmp_path, split="vinyal", resize="anti-alias", image_size=0)
    assert str(caught.value) == (
        "Omniglot: unknown split 'vinyal' (did you mean 'vinyals'?), expected one of 'vinyals', 'maml', 'alphabets'; "
        "unknown resize 'anti-alias' (did you mean 'antialias'?), expected one of 'nearest', 'antialias'; "
        "image_size must be a whole number of pixels >= 1, got 0"
    )


def test_a_member_that_unpacks_to_more_than_a_drawing_is_not_unpacked(tmp_path: Path) -> None:
    pack(draw(tmp_path))
    path = tmp_path / "images_background.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = next(name for name in members if name.endswith(".png"))
    members[victim] = bytes(2**24)  # 16 MB of nothing, packed to 16 kB
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    tracemalloc.start()
    try:
        message = message_of(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert f"{'/'.join(victim.split('/')[-3:])}: unpacks to 16,777,216 bytes; a drawing has at most 65,536" in message


def test_pipes_and_large_files_among_the_drawings_are_named(tmp_path: Path) -> None:
    draw(tmp_path)
    one, other, *_ = sorted((tmp_path / "images_background").rglob("*.png"))
    one.unlink()
    os.mkfifo(one)
    os.truncate(other, 2**17)
    message = message_of(tmp_path)
    assert f"{one.name}: is a named pipe, not a file" in message
    assert f"{other.name}: has 131,072 bytes, more than the limit of 65,536" in message


def test_a_zip_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pack(draw(tmp_path))
    (tmp_path / "images_background.zip").unlink()
    os.mkfifo(tmp_path / "images_background.zip")
    assert "is not a complete zip file, perhaps truncated (it is a named pipe)" in message_of(tmp_path)
