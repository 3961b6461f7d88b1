"""Omniglot on disk: finding it, checking it, decoding it, and splitting its characters.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction" (2015): 1,623
characters of 50 alphabets, 20 drawings each, as 1-bit PNGs of 105x105 pixels with ink = 0. `load_omniglot` gives them
as pools of uint8 [M, 1, size, size] with ink = 255, so that x / 255 has ink = 1, as in the MAML paper.

Splits: "vinyals" is the published list of 1028 / 172 / 423 characters (`splits/README.md`). "maml" is the rule of the
MAML code, 1100 / 100 / 423 at random; that code shuffled the order its file system happened to list, which nobody
can repeat, so here the sorted names are shuffled with seed 1. "alphabets" keeps alphabets whole: the 30 of
`images_background` for meta-train, and of the 20 of `images_evaluation` the first ten by name for meta-val, the last ten for
meta-test.

Resizing: the MAML authors asked for LANCZOS, but Pillow uses NEAREST on 1-bit images whatever one asks for, so their
pixels are binary: that is "nearest". "antialias" turns to grey first, as many ports do, and trains on other images.
"""

import difflib
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from io import BytesIO
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mamllit.data.pool import ClassPool
from mamllit.data.sources.bounded import irregular, read_bytes
from mamllit.data.sources.cache import load_cache
from mamllit.data.sources.download import fetch
from mamllit.data.sources.prepare import load_pools
from mamllit.data.sources.source import File, Item, Source, files_in, fingerprint, folders_in, report, some, stamped

BASE_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
ZIP_MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
SPLITS = ("vinyals", "maml", "alphabets")
ALPHABETS = {  # those of images_evaluation
    "val": (
        "Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi", "Kannada",
        "Keble",
    ),
    "test": (
        "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)",
        "Tengwar", "Tibetan", "ULOG",
    ),
}  # fmt: skip
RESIZES = ("nearest", "antialias")
SIDE = 105  # pixels of a drawing
DRAWINGS = 20  # per character
PNG = 2**16  # bytes of a drawing's file, at most; they have some 250
RESTORE = "Delete what is damaged and set `download: true`, or extract the original zips again."


class Drawing(NamedTuple):
    """One PNG: its character "Alphabet/characterNN", its file name, and how to get its bytes."""

    character: str
    file: str
    read: Callable[[], bytes]


def load_omniglot(
    root: str | Path, split: str = "vinyals", image_size: int = 28, resize: str = "nearest", download: bool = False
) -> dict[str, ClassPool]:
    """Meta-train, meta-val and meta-test pools of Omniglot.

    Looks under `root` for a cache of an earlier call (`.mamllit-cache/`), the extracted folders `images_background/`
    and `images_evaluation/`, or the two zips of these names, and writes the cache where `root` is writable.

    Args:
        root: the folder of the data.
        split: "vinyals", "maml" or "alphabets", see the top of this file.
        image_size: side of the images in pixels.
        resize: "nearest" or "antialias", see the top of this file.
        download: fetch the zips that are not there.

    Returns:
        pools "train", "val" and "test": uint8 [M, 1, image_size, image_size], paper 0, ink 255; classes by name.

    Raises:
        ValueError: for an unknown split, resize or size, or data that are damaged or incomplete.
        FileNotFoundError: if there is nothing to load.
        RuntimeError: if the download fails.
    """
    problems = [_unknown("split", split, SPLITS), _unknown("resize", resize, RESIZES)]
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        problems.append(f"image_size must be a whole number of pixels >= 1, got {image_size!r}")
    if found := [problem for problem in problems if problem]:
        raise ValueError("Omniglot: " + "; ".join(found))
    parts = split_characters(split)
    everything = load_characters(root, [*chain(*parts.values())], DRAWINGS, image_size, resize, download)
    return {key: everything.select(names) for key, names in parts.items()}


def split_characters(split: str) -> dict[str, list[str]]:
    """Sorted character names "Alphabet/characterNN" of "train", "val" and "test"."""
    folder = resources.files("mamllit.data") / "splits" / "omniglot"
    lists = {key: (folder / f"{key}.txt").read_text(encoding="utf-8").split() for key in ("train", "val", "test")}
    if split == "maml":
        names = sorted(chain(*lists.values()))
        random.Random(1).shuffle(names)
        lists = {"train": names[:1100], "val": names[1100:1200], "test": names[1200:]}
    if split == "alphabets":
        place = {alphabet: key for key, alphabets in ALPHABETS.items() for alphabet in alphabets}
        names = list(chain(*lists.values()))
        lists = {key: [name for name in names if place.get(name.split("/")[0], "train") == key] for key in lists}
    return {key: sorted(names) for key, names in lists.items()}


def load_characters(
    root: str | Path, names: Sequence[str], drawings: int, image_size: int, resize: str, download: bool
) -> ClassPool:
    """One pool of all these characters, by name, from the cache or the PNGs; `load_omniglot` before the split."""
    root, names = Path(root).expanduser(), sorted(names)
    cache = root / ".mamllit-cache" / f"omniglot-{image_size}-{resize}"
    either = {part: (root / part, root / f"{part}.zip") for part in ZIP_MD5}
    sources = {part: next((path for path in paths if path.exists()), None) for part, paths in either.items()}
    if missing := [part for part, source in sources.items() if source is None]:
        if (pool := _cached(cache, None, names, drawings)) is not None:  # the cache alone will do
            return pool
        if not download:
            raise FileNotFoundError(_nothing_found(root, cache, missing))
        sources |= {part: fetch(f"{BASE_URL}/{part}.zip", root / f"{part}.zip", ZIP_MD5[part]) for part in missing}
    found = [source for source in sources.values() if source is not None]
    files = {source: _png_files(source) for source in found if source.is_dir()}
    source = Source(
        name="Omniglot in " + " and ".join(map(str, found)),
        fingerprint=fingerprint(
            f"{image_size}-{resize}", root, chain(*(files.get(source, [stamped(source)]) for source in found))
        ),
        shape=(1, image_size, image_size),
        images=len(names) * drawings,
        pools={"all": lambda: _list(found, files, names, drawings, image_size, resize)},
        advice=RESTORE,
    )
    return load_pools(source, cache)["all"]


def decode(png: bytes, image_size: int, resize: str) -> NDArray[np.uint8]:
    """One drawing as uint8 [image_size, image_size], paper 0, ink 255; ValueError if it is not a 1-bit 105x105 PNG."""
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        if image.size != (SIDE, SIDE) or image.mode != "1":
            width, height = image.size
            raise ValueError(f"{width}x{height} pixels of mode {image.mode!r}, expected {SIDE}x{SIDE} of mode '1'")
        if resize == "nearest":
            paper = np.asarray(image.resize((image_size, image_size), Image.Resampling.NEAREST))
            return np.where(paper, 0, 255).astype(np.uint8)
        grey = image.convert("L").resize((image_size, image_size), Image.Resampling.LANCZOS)
        return np.uint8(255) - np.asarray(grey, np.uint8)


def _cached(cache: Path, fingerprint: str | None, names: list[str], drawings: int) -> ClassPool | None:
    pool = (load_cache(cache, fingerprint) or {}).get("all")
    usable = pool is not None and pool.names == tuple(names) and bool((pool.counts == drawings).all())
    return pool if usable else None


def _png_files(folder: Path) -> list[File]:
    """The PNGs at folder/Alphabet/characterNN/*.png."""
    return [
        file for alphabet in folders_in(folder) for character in folders_in(alphabet) for file in files_in(character, [".png"])
    ]


def _in_folder(files: Sequence[File]) -> list[Drawing]:
    paths = [Path(file.path) for file in files]
    return [Drawing("/".join(path.parts[-3:-1]), path.name, partial(read_bytes, path, PNG)) for path in paths]


def _in_zip(archive: zipfile.ZipFile) -> list[Drawing]:
    """The PNGs at .../Alphabet/characterNN/*.png in a zip, hidden files left out."""
    split = [(member, member.filename.split("/")) for member in archive.infolist() if member.filename.endswith(".png")]
    paths = [(member, path) for member, path in split if len(path) >= 3 and not path[-1].startswith(".")]
    return [Drawing("/".join(path[-3:-1]), path[-1], partial(_unpacked, archive, member)) for member, path in paths]


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member of a zip; what it says of its size is checked before, and holds: zipfile unpacks no more."""
    if member.file_size > PNG:
        raise ValueError(f"unpacks to {member.file_size:,} bytes; a drawing has at most {PNG:,}")
    return archive.read(member)


def _list(
    sources: list[Path], files: Mapping[Path, list[File]], names: list[str], drawings: int, size: int, resize: str
) -> dict[str, list[Item]]:
    """The drawings of each character; ValueError if a zip is damaged or the drawings are not all there."""
    found, problems = [drawing for listed in files.values() for drawing in _in_folder(listed)], []
    for source in sources:
        if source not in files:
            try:
                if problem := irregular(source.stat()):
                    raise OSError(f"it is {problem}")
                found += _in_zip(zipfile.ZipFile(source))  # closed when the last of its drawings is let go
            except (zipfile.BadZipFile, OSError) as error:
                length = source.stat().st_size
                problems.append(f"{source} ({length} bytes) is not a complete zip file, perhaps truncated ({error})")
    if problems:
        raise ValueError(report("Omniglot", problems, RESTORE))
    found.sort(key=lambda drawing: drawing[:2])
    groups = {name: list(group) for name, group in groupby(found, key=lambda drawing: drawing.character)}
    if problems := _wrong_counts(groups, names, drawings):
        raise ValueError(report("Omniglot in " + " and ".join(map(str, sources)), problems, RESTORE))

    def item(drawing: Drawing) -> Item:
        return Item(f"{drawing.character}/{drawing.file}", lambda: decode(drawing.read(), size, resize)[None])

    return {name: [item(drawing) for drawing in groups[name]] for name in names}


def _wrong_counts(groups: Mapping[str, list[Drawing]], names: list[str], drawings: int) -> list[str]:
    problems = []
    if absent := [name for name in names if name not in groups]:
        problems.append(f"missing characters, {len(absent)} of {len(names)}: {some(absent)}")
    counts = {name: len(groups[name]) for name in names if name in groups}
    return problems + [f"{name} has {n} PNGs, expected {drawings}" for name, n in counts.items() if n != drawings]


def _unknown(what: str, value: object, known: Sequence[str]) -> str:
    """The message for a value that is not a known one, with the nearest of them; empty if it is."""
    if value in known:
        return ""
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {value!r}{hint}, expected one of {', '.join(map(repr, known))}"


def _nothing_found(root: Path, cache: Path, missing: list[str]) -> str:
    looked = [f"a cache of an earlier run, {cache}"]
    looked += [f"{root / part}/ or {root / part}.zip" for part in missing]
    state = "" if root.is_dir() else f" (this {'is no folder' if root.exists() else 'folder does not exist'})"
    advice = (
        "Name their folder with --data.root, set `download: true`, or put the two zips there by hand, from " + BASE_URL + "/."
    )
    nearby = [root.parent] if root.name in ZIP_MD5 else [path.parent for path in root.glob("*/images_background*")]
    if nearby:
        advice += f" There seems to be something in {nearby[0]}: set `root` to that folder?"
    return report(f"Omniglot is not in {root}{state}; looked for", looked, advice)
