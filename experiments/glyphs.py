"""A small set of drawings that every machine can make: characters in the 21 text fonts that matplotlib ships.

    python experiments/glyphs.py FOLDER

writes one folder per character with one PNG per font, black on white; what docs/own_images.md, the tests and
experiments/own_sets.py use where they need images that are neither Omniglot's nor mini-ImageNet's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
# no two that many fonts draw alike, as c and C or 0 and O
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789abdefghmnqrty&@#$%?!*+="


def folder_of(character: str) -> str:
    """The name of a character's folder; A and a differ where file names know no case."""
    return f"{ord(character):03d}_{character if character.isalnum() else 'sign'}"


def draw(character: str, font: str, size: int = 64) -> Image.Image:
    """The character in black on white, as large as fits with a margin of an eighth of the side, in its middle."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(file), size)
    left, top, right, bottom = face.getbbox(character)
    face = ImageFont.truetype(str(file), int(size * 0.75 * size / max(right - left, bottom - top)))
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).text(((size - right - left) / 2, (size - bottom - top) / 2), character, fill=0, font=face)
    return image


def write_glyphs(
    folder: str | Path, characters: Sequence[str] = CHARACTERS, fonts: Sequence[str] = FONTS, size: int = 64
) -> Path:
    """One folder per character, one PNG per font; returns `folder`."""
    for character in characters:
        home = Path(folder) / folder_of(character)
        home.mkdir(parents=True, exist_ok=True)
        for font in fonts:
            draw(character, font, size).save(home / f"{font}.png")
    return Path(folder)


if __name__ == "__main__":
    write_glyphs(sys.argv[1])
