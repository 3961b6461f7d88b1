"""Images of any kind are prepared as the training images were; folders without images are refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mamllit.data.preparation import Preparation, preparation_of
from mamllit.data.sources.omniglot import decode
from mamllit.data.sources.pixels import decode_file
from mamllit.inference.images import (
    as_ink,
    images_below,
    known_preparation,
    left_out,
    prepare,
    query_files,
    read_images,
    support_files,
    warnings_of,
)

OMNIGLOT = "mamllit.data.OmniglotDataModule"


def colour(path: Path, size: tuple[int, int] = (20, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).convert(mode).save(path)
    return path


# ---- how the images of a checkpoint were prepared --------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["nearest", "antialias"])
def test_omniglot_drawings_come_out_as_in_training(tmp_path: Path, resize: str) -> None:
    pixels = np.random.default_rng(0).random((105, 105)) > 0.2
    Image.fromarray(pixels).save(tmp_path / "drawing.png")
    expected = decode((tmp_path / "drawing.png").read_bytes(), 28, resize)
    how = preparation_of({"class_path": OMNIGLOT, "init_args": {"resize": resize}})
    with Image.open(tmp_path / "drawing.png") as image:
        assert image.mode == "1"
        assert np.array_equal(prepare(image, how)[0].numpy(), expected)
        assert np.array_equal(prepare(image.convert("RGB"), how)[0].numpy(), expected)  # a drawing saved by another program


def test_omniglot_s_pixels_are_binary_whatever_the_drawing() -> None:
    how = preparation_of({"class_path": OMNIGLOT, "init_args": {"resize": "nearest"}})
    grey = Image.fromarray(np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8))
    found = prepare(grey, how)
    assert found.shape == (1, 28, 28)
    assert set(found.unique().tolist()) == {0, 255}
    assert found[0, 0, 0] == 255  # black is ink


def test_the_other_data_modules_say_size_and_channels() -> None:
    folder = {"class_path": "mamllit.data.ImageFolderDataModule", "init_args": {"image_size": 32, "channels": 1}}
    assert preparation_of(folder) == Preparation(32, 1, upright=True)
    mini = {"class_path": "mamllit.data.mini_imagenet.MiniImagenetDataModule", "init_args": {"image_size": 84}}
    assert preparation_of(mini) == Preparation(84, 3)


def test_what_a_checkpoint_says_itself_goes_before_its_data_module() -> None:
    said = Preparation(20, 3, invert=True, mean=0.5, std=0.25)
    assert preparation_of({"class_path": OMNIGLOT, "init_args": {}, "preparation": said.as_dict()}) == said
    assert preparation_of({"class_path": "own.Birds", "preparation": said.as_dict()}) == said
    assert preparation_of({"class_path": "own.Birds"}) is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("a.png", "P"), ("a.png", "L"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.bmp", "1")]
)
def test_a_folder_s_images_come_out_as_in_training(tmp_path: Path, name: str, mode: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / name, **({} if name == "a.bmp" else {"exif": exif}))
    for module, arguments in (("ImageFolderDataModule", {"channels": channels}), ("MiniImagenetDataModule", {})):
        how = preparation_of({"class_path": f"mamllit.data.{module}", "init_args": {"image_size": 16, **arguments}})
        expected = decode_file(tmp_path / name, 16, how.channels, upright=module == "ImageFolderDataModule")
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(prepare(opened, how).numpy(), expected)


def test_an_unknown_data_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trained with own\.Birds, whose image preparation is not known here .*set it in"):
        known_preparation({"class_path": "own.Birds", "init_args": {}})


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_gives_the_channels_asked_for(mode: str, channels: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 20), 102 * 256, np.uint16))
    else:
        image = Image.new("RGB", (20, 10), (102, 102, 102)).convert(mode)  # a grey that the palette has
    found = prepare(image, Preparation(8, channels))
    assert found.dtype == torch.uint8
    assert found.shape == (channels, 8, 8)
    assert found.float().mean() == pytest.approx(102, abs=1)


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert prepare(image, Preparation(4, 1)).unique().tolist() == [255]


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (4, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as turned:
        assert prepare(turned, Preparation(4, 1, upright=True))[0, 3, 3] == 255
        assert prepare(turned, Preparation(4, 1))[0, 0, 0] == 255


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_the_formats_of_the_data_modules_are_read(tmp_path: Path) -> None:
    files = [colour(tmp_path / f"a.{ending}") for ending in ("png", "jpg", "jpeg", "webp", "bmp")]
    images = read_images(files, Preparation(8, 3))
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.float32
    assert torch.allclose(images.mean((2, 3)), torch.tensor([200.0, 100.0, 50.0]) / 255, atol=0.03)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PPM"])
def test_no_other_format_is_opened_whatever_its_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS would start Ghostscript."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", kind)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError, match=r"1 of 1:\n  - \S+a\.png: cannot identify image file\n.*end in \.png, \.jpg, \.jpeg"):
        read_images([tmp_path / "a.png"], Preparation(8, 3))


def test_devices_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"pipe\.png: is a named pipe, not a file\n.*device\.png: is a device, not a file"):
        read_images([tmp_path / "pipe.png", tmp_path / "device.png"], Preparation(8, 3))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/1.ico", "a/2.ICO", "b/3.pcx", "b/c/x.ppm", "__MACOSX/a/1.ico"):
        colour(tmp_path / "real" / name)
    for name in (".hidden.ico", "Thumbs.db", "desktop.ini"):
        (tmp_path / "real" / "a" / name).touch()
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "linked").symlink_to(tmp_path / "real")
    assert left_out(tmp_path / "query") == "2 .ico, 1 .pcx, 1 .ppm"
    assert left_out(tmp_path / "real" / "a") == "2 .ico"


def test_light_on_dark_is_not_inverted(tmp_path: Path) -> None:
    dark = Image.new("L", (20, 20), 250)
    dark.paste(10, (8, 8, 12, 12))
    dark.save(tmp_path / "dark.png")
    ImageOps.invert(dark).save(tmp_path / "light.png")
    how = Preparation(20, 1, invert=True)
    ink = [as_ink(read_images([tmp_path / f"{name}.png"], how), how) for name in ("dark", "light")]
    assert torch.allclose(ink[0][0], ink[1][0], atol=1e-6)
    assert ink[0][0][0, 0, 10, 10] > 0.9
    assert [used.invert for _, used in ink] == [True, False]
    white, plain = torch.ones(1, 1, 20, 20), Preparation(20, 1)
    assert as_ink(white, plain) == (white, plain)  # weights that know white as 1


def test_all_unreadable_images_are_listed(tmp_path: Path) -> None:
    good = colour(tmp_path / "good.png")
    cut = colour(tmp_path / "cut.jpg", (300, 300))
    cut.write_bytes(cut.read_bytes()[:600])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(
        ValueError, match=r"^images that cannot be read, 2 of 3:\n  - \S+cut\.jpg: .*\n  - \S+text\.png: .*\nReplace"
    ):
        read_images([good, cut, tmp_path / "text.png"], Preparation(8, 3))
    many = [tmp_path / f"{i}.png" for i in range(13)]
    with pytest.raises(ValueError, match=r"13 of 13:(\n  - .*){10}\n  - and 3 more\n"):
        read_images(many, Preparation(8, 3))


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_files_are_found_by_class_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/deep/er/3.png", "a/.hidden.png", "a/.trash/4.png", ".git/5.png"):
        colour(tmp_path / name)
    (tmp_path / "b" / "notes.txt").touch()
    found = support_files(tmp_path)
    assert {name: [file.name for file in files] for name, files in found.items()} == {"a": ["3.png"], "b": ["1.JPG", "2.png"]}
    assert [file.name for file in query_files(tmp_path)] == ["3.png", "1.JPG", "2.png"]


def test_folders_that_systems_leave_behind_are_no_classes(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/@eaDir/1.png", "b/1.png", "__MACOSX/b/1.png", ".git/1.png", "$RECYCLE.BIN/1.png"):
        colour(tmp_path / name)
    found = support_files(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"a": 1, "b": 1}


def test_images_that_are_there_twice_are_told_with_the_pairs(tmp_path: Path) -> None:
    first, second, third = (
        colour(tmp_path / "s" / name, (9, 9 + i)) for i, name in enumerate(("a/1.png", "a/2.png", "b/1.png"))
    )
    same, other = tmp_path / "q.png", colour(tmp_path / "r.png", (20, 20))
    same.write_bytes(second.read_bytes())
    support = {"a": [first, second], "b": [third]}
    assert warnings_of(support, [other]) == []
    (said,) = warnings_of(support, [other, same])
    assert said == (
        "warning: 1 of the 2 query images are also support images, so their accuracy says nothing about new images: "
        f"{second} = {same}"
    )
    third.write_bytes(first.read_bytes())
    (said,) = warnings_of(support, [other])
    assert said == f"warning: 1 support images are in two classes: {first} = {third}"
    (said,) = warnings_of({"a": [first], "b": [second]}, [first] * 12)
    assert said.endswith(" and 2 more")
    for name in ("p.png", "q.png"):
        os.mkfifo(tmp_path / "s" / name)  # not to be opened
    third.unlink()
    third.symlink_to("nowhere")
    assert warnings_of({"a": [first], "b": [third]}, []) == [], "told when the images are read"
    assert warnings_of({"a": [tmp_path / "s/p.png"], "b": [tmp_path / "s/q.png"]}, []) == []


def test_links_are_followed_to_files_and_folders_and_not_in_circles(tmp_path: Path) -> None:
    colour(tmp_path / "real" / "deep" / "1.png")
    query = tmp_path / "query"
    query.mkdir()
    (query / "a").symlink_to(tmp_path / "real")
    (query / "b").symlink_to(tmp_path / "real" / "deep")
    (query / "c.png").symlink_to(tmp_path / "real" / "deep" / "1.png")
    (tmp_path / "real" / "back").symlink_to(query)
    (query / "gone").symlink_to(tmp_path / "nowhere")
    found = [str(file.relative_to(query)) for file in query_files(query)]
    assert found == ["a/deep/1.png", "b/1.png", "c.png"]


def test_images_below_a_hidden_folder_are_found_when_it_is_asked_for(tmp_path: Path) -> None:
    colour(tmp_path / ".cache" / "a.png")
    assert len(images_below(tmp_path / ".cache")) == 1


@pytest.mark.parametrize(("find", "what"), [(support_files, "support"), (query_files, "query")])
def test_a_folder_that_is_none_is_refused(find, what: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^the {what} folder \S+/nowhere does not exist$"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=rf"^the {what} folder \S+/file is not a folder$"):
        find(tmp_path / "file")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no sub-folders; it needs one per class, named after the class$"):
        support_files(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"^no images in the query folder \S+ or the folders in it; images are the files"
    ):
        query_files(tmp_path)
    colour(tmp_path / "a" / "1.png")
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"^no images in these class folders of \S+: b, c; images are the files that end in"
    ):
        support_files(tmp_path)
