"""One image file to pixels: whatever its mode, size and orientation, a square uint8 array with 1 or 3 channels."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from mamllit.data.sources import bounded

FORMATS = {  # that are read, by suffix
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF", ".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF",
}  # fmt: skip
OPTIONAL = {  # formats that not every Pillow reads: the brands in their files, and what brings them
    "HEIF": (("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"), "pip install 'mamllit[heic]'"),
    "AVIF": (("avif", "avis"), "pip install -U pillow"),
}
MODES = {1: "L", 3: "RGB"}  # by number of channels
MOST = 2**26  # pixels of an image: decoded, some 1 GB on the way
LARGE = 2**25  # pixels of an image that is decoded with no other beside it
TURNS = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large, _one_filter = threading.Lock(), threading.Lock()


def decode_file(path: str | Path, size: int, channels: int, upright: bool) -> NDArray[np.uint8]:
    """`decode_image` of a file."""
    return decode_image(bounded.read_bytes(path, bounded.IMAGE), size, channels, upright)


def decode_image(data: bytes, size: int, channels: int, upright: bool) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [channels, size, size].

    An image of another size is squeezed to the square with Lanczos' filter, its sides' ratio lost, as in the MAML paper's code
    (`proc_images.py` of cbfinn/maml).

    Args:
        data: the bytes of a file of one of the `FORMATS`.
        size: pixels of a side.
        channels: 1 (grey) or 3 (RGB).
        upright: turn the image as its EXIF orientation says.

    Raises:
        OSError, ValueError, SyntaxError: as `picture`.
    """
    with picture(data, channels, upright) as image:
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        return to_pixels(np.asarray(image))


@contextmanager
def picture(data: bytes, channels: int, upright: bool) -> Iterator[Image.Image]:
    """An image file as everybody opens it: grey or RGB, upright, in its own size.

    What is transparent becomes white; palettes, CMYK, 16 bits and floats become plain grey or RGB; of an animation, or of
    several pages, the first picture counts.

    Args:
        data: the bytes of a file of one of the `FORMATS`.
        channels: 1 (grey) or 3 (RGB).
        upright: turn the image as its EXIF orientation says.

    Raises:
        OSError, ValueError, SyntaxError: for an image of more than 2**26 pixels, a format that wants another package, and what
            Pillow raises for a file that is damaged or something else.
    """
    with opened(data) as image:
        yield settled(image, channels, upright)


def settled(image: Image.Image, channels: int, upright: bool) -> Image.Image:
    """An opened image as `picture` gives it."""
    return plain(turned(image) if upright else image, MODES[channels])


@cache
def _readable() -> tuple[str, ...]:
    """Those of the `FORMATS` that this Pillow and its plug-in read."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(sorted({*FORMATS.values()} & {*Image.OPEN}))


def _lacking(data: bytes) -> str:
    """What reads a file of an `OPTIONAL` format that cannot be read here, in words; else empty."""
    brand = data[8:12].decode("latin-1") if data[4:8] == b"ftyp" else ""
    found = [(form, how) for form, (brands, how) in OPTIONAL.items() if brand in brands and form not in _readable()]
    return "".join(f"is in the format {form}, which this Pillow cannot read; {how} adds it" for form, how in found)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An image file of one of the `FORMATS`, its size checked, its pixels not yet decoded."""
    too_large = f"it has more than {MOST:,} pixels, the limit; make it smaller: a few hundred per side are enough"
    try:
        with _quiet():
            image = Image.open(BytesIO(data), formats=_readable())
    except Image.DecompressionBombError as error:  # Pillow's own bound is higher
        raise ValueError(too_large) from error
    except OSError as error:
        if lacking := _lacking(data):
            raise ValueError(lacking) from error
        raise
    with image:
        pixels = image.width * image.height
        if pixels > MOST:
            raise ValueError(f"{image.width}x{image.height} pixels: {too_large}")
        with _one_large if pixels > LARGE else nullcontext():
            yield image


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of EXIF that ends too early, which of a JPEG is read when it is opened, and of many pixels, of
    which fewer are an error here."""
    with _one_filter, warnings.catch_warnings():  # whose filters are those of all threads
        warnings.filterwarnings("ignore", r"Truncated File Read|Corrupt EXIF data", UserWarning, r"PIL\.TiffImagePlugin")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def turned(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; EXIF that cannot be read says nothing.

    Pillow's `exif_transpose` also writes the EXIF anew, which fails on entries that do not concern the orientation.
    """
    try:
        with _quiet():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        turn = None if orientation is None or orientation != int(orientation) else TURNS.get(int(orientation))
    except Exception:  # damaged EXIF can raise nearly anything; the image itself may be whole
        return image
    return image if turn is None else image.transpose(turn)


def to_pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] or [H, W] as [C, H, W]."""
    return image.transpose(2, 0, 1) if image.ndim == 3 else image[None]


def plain(image: Image.Image, mode: str) -> Image.Image:
    """A picture of any kind as grey ("L") or "RGB": transparency on white, 16-bit, 32-bit and real grey scaled to 8 bits."""
    if image.mode.startswith("I;16"):  # `convert` would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # of microscopes and the like: the range is not said, and the least that holds it is taken
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0).clip(0)
        most = next((m for m in (1.0, 255.0, 65535.0) if values.max() <= m), values.max())
        image = Image.fromarray((values * (255 / most)).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image if image.mode == mode else image.convert(mode)
