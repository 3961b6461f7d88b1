"""One image file to pixels: whatever its mode, size and orientation, a square uint8 array with 1 or 3 channels."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}  # that are read, by suffix
MODES = {1: "L", 3: "RGB"}  # by number of channels


def decode_file(path: str | Path, size: int, channels: int, upright: bool) -> NDArray[np.uint8]:
    """`decode_image` of a file."""
    with open(path, "rb") as file:
        return decode_image(file.read(), size, channels, upright)


def decode_image(data: bytes, size: int, channels: int, upright: bool) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [channels, size, size].

    An image of another size is squeezed to the square with Lanczos' filter, its sides' ratio lost, as in the MAML paper's code
    (`proc_images.py` of cbfinn/maml). What is transparent becomes white; palettes, 16-bit grey, CMYK and the like become plain
    grey or RGB; of an animation the first picture counts.

    Args:
        data: the bytes of a PNG, JPEG, WebP or BMP file.
        size: pixels of a side.
        channels: 1 (grey) or 3 (RGB).
        upright: turn the image as its EXIF orientation says.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for a file that is damaged or something else.
    """
    with Image.open(BytesIO(data), formats=tuple({*FORMATS.values()})) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
        image = plain(image, MODES[channels])
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        return to_pixels(np.asarray(image))


def to_pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] or [H, W] as [C, H, W]."""
    return image.transpose(2, 0, 1) if image.ndim == 3 else image[None]


def plain(image: Image.Image, mode: str) -> Image.Image:
    """A picture of any kind as grey ("L") or "RGB": transparency on white, 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I"):  # 16-bit grey; `convert` would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image if image.mode == mode else image.convert(mode)
