"""Image files of every mode to pixels, each beside what Pillow, or a value worked out by hand, says."""

import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mamllit.data.sources import pixels
from mamllit.data.sources.pixels import FORMATS, decode_file, decode_image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def random_image(mode: str = "RGB", width: int = 6, height: int = 6) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def test_rgb_comes_out_channels_first() -> None:
    result = decode_image(encoded(random_image()), 6, 3, True)
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.asarray(random_image()).transpose(2, 0, 1))


def test_another_size_is_squeezed_with_lanczos() -> None:
    image = random_image(width=50, height=20)
    expected = np.asarray(image.resize((9, 9), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(decode_image(encoded(image), 9, 3, False), expected)


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_every_format_can_be_read(suffix: str, tmp_path: Path) -> None:
    if FORMATS[suffix] == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    random_image(width=64, height=64).save(tmp_path / f"x{suffix}")
    assert decode_file(tmp_path / f"x{suffix}", 6, 3, True).shape == (3, 6, 6)


def test_another_format_is_refused_whatever_its_name() -> None:
    with pytest.raises(OSError, match="cannot identify image file"):
        decode_image(encoded(random_image(), "PPM"), 6, 3, True)


@pytest.mark.parametrize(("suffix", "how"), [("HEIF", r"pip install 'mamllit\[heic\]'"), ("AVIF", "pip install -U pillow")])
def test_a_format_that_wants_a_package_says_which(suffix: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x18ftyp" + {"HEIF": b"heic", "AVIF": b"avif"}[suffix] + bytes(100)
    monkeypatch.setattr(pixels, "_readable", lambda: ("JPEG", "PNG"))
    with pytest.raises(ValueError, match=f"^is in the format {suffix}, which this Pillow cannot read; {how} adds it$"):
        decode_image(data, 6, 3, True)


def test_a_photograph_of_a_telephone_is_turned_once() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 64))  # white on the left, which orientation 6 puts on top
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_image(encoded(image, "HEIF", exif=exif.tobytes()), 8, 1, True)[0]
    assert (found[:3] > 200).all() and (found[5:] < 50).all()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_counts(form: str) -> None:
    frames = [Image.new("RGB", (6, 6), color) for color in ((250, 250, 250), (0, 0, 0), (0, 0, 0))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert decode_image(data, 6, 1, True).min() > 240


def test_a_stereo_photograph_is_a_jpeg() -> None:
    left, right = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))
    assert decode_image(encoded(left, "MPO", save_all=True, append_images=[right]), 8, 1, True).min() > 250


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[0, 0.5], [float("nan"), 1]]), [[0, 127], [0, 255]]),
        (np.float32([[-3, 100], [200, 255]]), [[0, 100], [200, 255]]),
        (np.int32([[0, 7], [9, 255]]), [[0, 7], [9, 255]]),
        (np.int32([[0, 257], [32896, 65535]]), [[0, 1], [128, 255]]),
        (np.float32([[0, 1e6], [2e6, 4e6]]), [[0, 63], [127, 255]]),
        (np.float32([[0, 0], [0, 0]]), [[0, 0], [0, 0]]),
    ],
)
def test_numbers_of_32_bits_keep_their_range(values: np.ndarray, expected: list) -> None:
    assert decode_image(encoded(Image.fromarray(values), "TIFF"), 2, 1, True)[0].tolist() == expected


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_channel_is_grey(mode: str) -> None:
    image = random_image(mode)
    assert np.array_equal(decode_image(encoded(image), 6, 1, True), np.asarray(image.convert("L"))[None])


def test_grey_becomes_three_equal_channels() -> None:
    image = random_image("L")
    assert np.array_equal(decode_image(encoded(image), 6, 3, True), np.asarray(image)[None].repeat(3, 0))


def test_what_is_transparent_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 200, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image = image.resize((2, 2), Image.Resampling.NEAREST)
    result = decode_image(encoded(image), 2, 3, True)
    assert result[:, 0].T.tolist() == [[0, 0, 200], [255, 255, 255]]


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 1), 1)
    assert decode_image(encoded(image), 2, 3, True)[:, 0, 0].tolist() == [10, 20, 30]
    result = decode_image(encoded(image, transparency=0), 2, 3, True)
    assert result[:, 0, 0].tolist() == [255, 255, 255]
    assert result[:, 1, 1].tolist() == [200, 100, 50]


def test_1_bit_is_turned_to_grey_before_it_is_resized() -> None:
    image = Image.fromarray(np.random.default_rng(0).random((20, 20)) > 0.5)
    expected = image.convert("L").resize((7, 7), Image.Resampling.LANCZOS)
    assert np.array_equal(decode_image(encoded(image), 7, 1, True)[0], np.asarray(expected))


def test_16_bit_grey_keeps_its_range() -> None:
    image = Image.fromarray(np.array([[0, 256], [32768, 65535]], np.uint16))
    assert decode_image(encoded(image), 2, 1, True)[0].tolist() == [[0, 1], [128, 255]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode_image(encoded(image, "JPEG"), 8, 3, True)[:, 4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_the_orientation_is_followed_where_asked() -> None:
    image = random_image(width=4, height=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright" (EXIF 2.3, 4.6.4)
    data = encoded(image, exif=exif)
    plain = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(decode_image(data, 4, 3, False), plain)
    assert np.array_equal(decode_image(data, 4, 3, True), np.rot90(plain, -1, (1, 2)))


def test_a_truncated_jpeg_is_an_error() -> None:
    data = encoded(random_image(width=60, height=60), "JPEG")
    with pytest.raises(OSError, match="image file is truncated"):
        decode_image(data[: len(data) // 2], 84, 3, False)


# ---- odd EXIF ----------------------------------------------------------------------------------------------------------


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of these entries: tag, type (2 text, 3 short, 5 rational, 10 signed rational), and the value."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    table, values, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        count = len(value) if kind == 2 else 1
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", at + len(values))
        table += struct.pack("<HHI", tag, kind, count) + place
        values += value if len(value) > 4 else b""
    return b"Exif\0\0" + head + table + b"\0\0\0\0" + values


SIDEWAYS = (0x0112, 3, struct.pack("<H", 6))
ODD = {
    "a rational of -1/0": exif(SIDEWAYS, (0x011A, 10, struct.pack("<ii", -1, 0))),
    "make as a rational": exif((0x010F, 5, struct.pack("<II", 1, 2)), SIDEWAYS),
    "text that is no text": exif((0x010F, 2, b"\xff\xfe\xfd\xfc\xfb"), SIDEWAYS),
    "orientation as a rational": exif((0x0112, 5, struct.pack("<II", 6, 1))),
    "an entry beyond the end": exif(SIDEWAYS, (0x010F, 2, b"abcdefgh"))[:-8],
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_keeps_no_image_from_being_turned(kind: str, suffix: str) -> None:
    image = Image.new("L", (8, 4))
    image.paste(255, (0, 0, 4, 4))  # white on the left, which orientation 6 puts on top
    file = BytesIO()
    image.save(file, suffix, exif=ODD[kind], **({"lossless": True} if suffix == "WEBP" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as "Truncated File Read", of the last
        found = decode_image(file.getvalue(), 4, 1, True)[0]
    assert (found[:2] > 200).all()
    assert (found[2:] < 50).all()


@pytest.mark.parametrize(
    "spoilt",
    [b"Exif\0\0II*\0\xff\xff", b"Exif\0\0", exif((0x0112, 5, struct.pack("<II", 1, 0))), exif((0x0112, 2, b"six\0"))],
)
def test_exif_that_tells_no_orientation_leaves_the_image(spoilt: bytes) -> None:
    image = Image.new("L", (8, 4))
    image.paste(255, (0, 0, 4, 4))
    file = BytesIO()
    image.save(file, "JPEG", exif=spoilt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode_image(file.getvalue(), 4, 1, True)[0][:, :2] > 200).all()


# ---- what would take much memory ----------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """The beginning of a PNG that says to be so large."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("size", "said"), [((9000, 8000), "9000x8000 pixels: "), ((12000, 8000), "12000x8000 pixels: "), ((2**16, 2**16), "")]
)
def test_an_image_that_would_fill_the_memory_is_refused_unread(size: tuple[int, int], said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as Pillow's, of the second
        with pytest.raises(ValueError, match=f"^{said}it has more than 67,108,864 pixels, the limit; make it smaller"):
            decode_image(bomb(*size), 4, 1, True)


def test_a_large_image_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "LARGE", 10)
    file = BytesIO()
    Image.new("L", (4, 4), 100).save(file, "PNG")
    with pixels._one_large:
        thread = threading.Thread(target=decode_image, args=(file.getvalue(), 4, 1, True))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("make", "what"), [(os.mkfifo, "a named pipe"), (lambda path: path.symlink_to("/dev/zero"), "a device")]
)
def test_what_is_no_file_is_refused_at_once(make: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(OSError, match=f"^is {what}, not a file$"):
        decode_file(tmp_path / "a.png", 4, 1, True)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"^has 268,435,457 bytes, more than the limit of 268,435,456; make it smaller$"):
        decode_file(tmp_path / "a.png", 4, 1, True)
