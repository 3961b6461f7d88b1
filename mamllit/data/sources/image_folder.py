"""A folder of your own images: finding them, splitting their classes, and saying what is wrong with them.

Two forms: `root/<class>/*`, whose classes are split by ratio or by lists, and `root/{train,val,test}/<class>/*`, which is split
already. Folders in a class's folder are of that class. Splits share no class: a class met in meta-training would tell nothing
about learning new ones.
"""

import difflib
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from mamllit.core.philox import SPLITS
from mamllit.data.pool import ClassPool
from mamllit.data.sources.bounded import read_text
from mamllit.data.sources.pixels import FORMATS, decode_file
from mamllit.data.sources.prepare import load_pools, say_once
from mamllit.data.sources.source import (
    SHOWN,
    Classes,
    File,
    Item,
    Source,
    classes_below,
    fingerprint,
    folders_below,
    others_in,
    report,
    some,
)

SUFFIXES = tuple(FORMATS)
ADVICE = "Replace or remove them and start again."
WAY_OUT = (
    "With less, do not train: `mamllit adapt --features timm:tf_efficientnet_lite0 --support DIR --query DIR` needs two "
    "or more classes of one or more images."
)
Names = Sequence[str | int | float] | str | Path  # names of classes, or a text file with one a line


def load_image_folder(
    root: str | Path,
    image_size: int,
    channels: int,
    split_ratios: Sequence[float],
    split_seed: int,
    lists: Mapping[str, Names] | None,
    cache_dir: str | Path | None,
) -> dict[str, ClassPool]:
    """Meta-train, meta-val and meta-test pools of a folder of images.

    Args:
        root: the folder, in one of the two forms above.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        split_ratios, split_seed: see `split_by_ratio`; not for a folder that is split already.
        lists: the classes of "train", "val" and "test", or a text file of each; in place of the ratios.
        cache_dir: folder of the decoded images; by default `.mamllit-cache` in `root`.

    Returns:
        pools "train", "val" and "test": uint8 [M, channels, image_size, image_size].

    Raises:
        FileNotFoundError: if `root`, or a list, is not there.
        ValueError: naming all that is wrong with the folder, the lists or the images.
        OSError: if a cache that is needed cannot be written.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; set `root` to the folder that holds your images, one folder per class"
        )
    split_already = all((root / split).is_dir() for split in SPLITS)
    if split_already and lists is not None:
        raise ValueError(
            f"{root} already has the folders train/, val/ and test/; leave out the lists of classes, or rename the folders"
        )
    files = {s: classes_below(root / s, SUFFIXES) for s in SPLITS} if split_already else {"all": classes_below(root, SUFFIXES)}
    homes = [(root if split == "all" else root / split) / name for split, classes in files.items() for name in classes]
    if others := others_in(chain(*map(folders_below, homes)), SUFFIXES):
        say_once(f"{root}: skipped, since only {', '.join(SUFFIXES)} are read: {others}")
    if problems := _problems(root, files):
        raise ValueError(report(f"the images in {root}", problems, "Every class needs its own folder with images in it."))
    if deeper := [
        file.path
        for classes in files.values()
        for found in classes.values()
        for file in found
        if _deep(root, file, split_already)
    ]:
        say_once(f"{root}: {len(deeper)} images in sub-folders of a class folder count as that class, e.g. {deeper[0]}")
    parts = {} if split_already else _parts([*files["all"]], split_ratios, split_seed, lists)
    source = _source(root, files, image_size, channels)
    cache = Path(cache_dir or root / ".mamllit-cache").expanduser() / f"images-{image_size}x{channels}"
    pools = load_pools(source, cache, "free some space, make it writable, or set `cache_dir` to another folder")
    if not split_already:
        pools = {split: pools["all"].select(names) for split, names in parts.items()}
    counts = ", ".join(f"{pool.num_classes} {split}" for split, pool in pools.items())
    say_once(f"{root}: classes {counts}; test classes: {some(pools['test'].names, 30)}")
    return pools


def split_by_ratio(names: Sequence[str], ratios: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Classes of "train", "val" and "test", sorted: shares of `ratios`, val and test rounded, at least one each.

    The order is that of a hash of seed and name, not a shuffle: it is the same everywhere, and a class more or less moves few
    others from one split to another.

    Raises:
        ValueError: if the ratios are not three positive numbers with sum 1, or there are fewer than three classes.
    """
    if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-3:
        raise ValueError(f"split_ratios is {list(ratios)}; it needs three numbers > 0, for train, val and test, that sum to 1")
    if len(names) < 3:
        raise ValueError(f"there are {len(names)} classes; train, val and test need at least one each. {WAY_OUT}")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    val, test = (max(1, round(ratio * len(names))) for ratio in ratios[1:])
    train = max(1, len(names) - val - test)
    ends = {"train": (0, train), "val": (train, len(names) - test), "test": (len(names) - test, len(names))}
    return {split: sorted(order[slice(*part)]) for split, part in ends.items()}


def refuse_small(pools: Mapping[str, ClassPool], ways: int, images: Mapping[str, tuple[int, str]]) -> None:
    """ValueError with the numbers if a split has too few classes, or a class too few images, for the episodes asked for.

    Args:
        pools: pool by split.
        ways: classes per episode.
        images: for each split the images per class that an episode takes, and how they come about, in words.
    """
    problems = []
    for split, pool in pools.items():
        if pool.num_classes < ways:
            problems.append(f"{split} has {pool.num_classes} classes, but an episode needs {ways} (ways)")
        need, why = images[split]
        small = [f"{name} ({count})" for name, count in zip(pool.names, pool.counts, strict=True) if count < need]
        if small:
            problems.append(
                f"{split} has classes with fewer images than the {need} that an episode needs ({why}): {some(small)}"
            )
    if problems:
        total = sum(pool.num_classes for pool in pools.values())
        most = max(need for need, _ in images.values())
        advice = (
            f"To train on your own images, use {6 * ways} classes or more ({3 * ways} at the very least, {ways} for each of "
            f"train, val and test) with {most} images each, or fewer ways, shots or queries (standard_queries, or "
            f"protocols, for the test). {WAY_OUT}"
        )
        if total >= 3 * ways and any(pool.num_classes < ways for pool in pools.values()):
            share = -(-1000 * ways // total) / 1000
            advice += (
                f" {total} classes are enough for {ways} ways in every split with split_ratios "
                f"[{1 - 2 * share:.3f}, {share:.3f}, {share:.3f}]."
            )
        raise ValueError(report("too few classes or images for these episodes", problems, advice))


def _problems(root: Path, files: Mapping[str, Mapping[str, Sequence[File]]]) -> list[str]:
    homes: dict[str, list[str]] = {}
    problems = []
    for split, classes in files.items():
        folder = root if split == "all" else root / split
        problems += [] if classes else [f"{folder} has no class folders"]
        for name, found in classes.items():
            homes.setdefault(name, []).append(split)
            if split == "all" and name in SPLITS and not any(Path(file.path).parent.name == name for file in found):
                problems.append(f"the class folder {folder / name} contains folders; do train, val and test all exist?")
            elif not found:
                problems.append(f"the class folder {folder / name} has no images ({', '.join(SUFFIXES)})")
    return problems + [
        f"class {name} is in {' and '.join(s)}: a class may be in only one" for name, s in homes.items() if s[1:]
    ]


def _deep(root: Path, file: File, split_already: bool) -> bool:
    """Whether a file lies in a folder below its class's."""
    return len(Path(file.path).relative_to(root).parts) > 2 + split_already


def _parts(names: Sequence[str], ratios: Sequence[float], seed: int, lists: Mapping[str, Names] | None) -> dict[str, list[str]]:
    if lists is None:
        return split_by_ratio(names, ratios, seed)
    problems: list[str] = []
    homes: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    folders: dict[str, list[str]] = {}  # by the name in one form: "é" may be one character or two
    for folder in names:
        folders.setdefault(unicodedata.normalize("NFC", folder), []).append(folder)
    for split, listed in lists.items():
        found = _names_in(listed)
        problems += [] if found else [f"the {split} list is empty"]
        parts[split] = []
        for name in found:
            alike = folders.get(unicodedata.normalize("NFC", str(name)), [])
            if not alike:
                hint = _hint(name, names) if len(problems) < SHOWN else ""
                problems.append(f"{name!r} of the {split} list has no folder{hint}")
            elif len(alike) > 1 and name not in alike:
                problems.append(
                    f"{name!r} of the {split} list has {len(alike)} folders whose names only look the same: rename one"
                )
            folder = alike[0] if len(alike) == 1 else str(name)
            parts[split].append(folder)
            homes.setdefault(folder, []).append(split)
    problems += [f"{name!r} is named twice, in the lists {' and '.join(s)}" for name, s in homes.items() if len(s) > 1]
    if problems:
        raise ValueError(report("the lists of classes", problems, "List the names of folders, each in one list only."))
    if rest := sorted(set(names) - set(homes)):
        say_once(f"{len(rest)} classes are in none of the lists and are left out: {some(rest)}")
    return {split: sorted(listed) for split, listed in parts.items()}


def _hint(name: str | float, names: Sequence[str]) -> str:
    """What may be meant by a name that no folder has."""
    if not isinstance(name, str):
        quoted = "; YAML reads a name that looks like a number or a boolean as one: put it in quotes"
        words = _WORDS[name] if isinstance(name, bool) else ()
        same = [folder for folder in names if folder.lstrip("0") == str(name) or folder.lower() in words]
        return f"{quoted}, as in {same[0]!r}" if same else quoted
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


_WORDS: Mapping[bool, tuple[str, ...]] = {True: ("yes", "on", "true"), False: ("no", "off", "false")}


def _names_in(listed: Names) -> list[str | int | float]:
    if not isinstance(listed, str | Path):
        return list(listed)
    path = Path(listed).expanduser()
    try:
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"the list of classes {path} {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"cannot read the list of classes {listed} ({error.strerror or error}); it must have one name per line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _source(root: Path, files: Mapping[str, Mapping[str, Sequence[File]]], size: int, channels: int) -> Source:
    def items(pool: str) -> Classes:
        return {
            name: [Item(file.path, partial(decode_file, file.path, size, channels, True)) for file in found]
            for name, found in files[pool].items()
        }

    every = [*chain(*(found for classes in files.values() for found in classes.values()))]
    form = "folders train/, val/ and test/" if len(files) > 1 else "a folder"
    return Source(
        name=f"images in {root}: {form} of {sum(map(len, files.values()))} class folders, {len(every)} images",
        fingerprint=fingerprint(f"{size}x{channels}", root, every),
        shape=(channels, size, size),
        images=len(every),
        pools={pool: partial(items, pool) for pool in files},
        advice=ADVICE,
    )
