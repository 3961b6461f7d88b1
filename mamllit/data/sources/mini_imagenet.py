"""mini-ImageNet on disk: the three forms that people have it in, and the download.

100 classes of ImageNet with 600 images each, 84x84 (Vinyals et al. 2016), in the split of Ravi and Larochelle (2017): 64
classes for meta-training, 16 for meta-validation, 20 for meta-test. `load_mini_imagenet` gives them as pools of uint8
[M, 3, 84, 84], classes and images in the order of their names. Images of another size are squeezed to the square with
Lanczos' filter, as the MAML authors did.
"""

import csv
import io
import os
import warnings
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

from mamllit.core.philox import SPLITS
from mamllit.data.pool import ClassPool
from mamllit.data.sources.bounded import read_text
from mamllit.data.sources.cache import load_cache
from mamllit.data.sources.mini_imagenet_pickles import BASE_URL, CLASSES, IMAGES, SIDE, download_pickles, pickle_at, pickle_form
from mamllit.data.sources.pixels import FORMATS, decode_file
from mamllit.data.sources.prepare import load_pools, say_once
from mamllit.data.sources.source import Classes, File, Item, Source, classes_in, files_in, fingerprint, report, some, stamped

SUFFIXES = tuple(FORMATS)
RESTORE = "Replace them with intact ones and start again."


def load_mini_imagenet(
    root: str | Path, image_size: int = SIDE, download: bool = False, cache_dir: str | Path | None = None
) -> dict[str, ClassPool]:
    """Meta-train, meta-val and meta-test pools of mini-ImageNet.

    Looks under `root` for `images/` with `train.csv`, `val.csv` and `test.csv`, for the folders `train/`, `val/` and `test/`
    of class folders, for the pickles of Ren et al. (2018), and for the cache of an earlier call alone, in this order.

    Args:
        root: the folder of the data.
        image_size: side of the images in pixels.
        download: fetch the pickles (1.8 GB) where nothing is there.
        cache_dir: folder of the cache (1.3 GB); by default `.mamllit-cache/` in `root`.

    Returns:
        pools "train", "val" and "test": uint8 [M, 3, image_size, image_size].

    Raises:
        ValueError: for an image size below 1, or data that are damaged, incomplete or inconsistent.
        FileNotFoundError: if there is nothing to load.
        RuntimeError: if the download fails.
        OSError: if the cache cannot be written.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be >= 1")
    root = Path(root).expanduser()
    cache = Path(cache_dir or root / ".mamllit-cache").expanduser() / f"mini-imagenet-{image_size}"
    source = _find(root, image_size)
    if source is None and (pools := load_cache(cache, None)) is not None:
        say_once(f"mini-ImageNet: only the cache {cache}, its source is gone")
        return pools
    if source is None and download:
        download_pickles(root)
        source = _find(root, image_size)
    if source is None:
        raise FileNotFoundError(_nothing_found(root, cache))
    pools = load_pools(source, cache, "free some space, make it writable, or set `cache_dir` to another folder")
    odd = [
        f"{split} has {pool.num_classes} classes of {pool.counts.min()} to {pool.counts.max()} images, expected "
        f"{CLASSES[split]} of {IMAGES}"
        for split, pool in pools.items()
        if pool.num_classes != CLASSES[split] or (pool.counts != IMAGES).any()
    ]
    if odd:
        warnings.warn(f"{source.name} is not the complete set, results are not comparable: {'; '.join(odd)}", stacklevel=2)
    return pools


def _find(root: Path, size: int) -> Source | None:
    for form in (_csv_form, _folder_form, pickle_form):
        if (source := form(root, size)) is not None:
            return source
    return None


def _csv_form(root: Path, size: int) -> Source | None:
    lists = {split: root / f"{split}.csv" for split in SPLITS}
    if not (root / "images").is_dir() or not all(path.is_file() for path in lists.values()):
        return None
    there = {os.path.basename(file.path): file for file in files_in(root / "images", SUFFIXES)}
    files: dict[str, dict[str, list[File]]] = {}
    problems: list[str] = []
    for split, path in lists.items():
        rows, wrong = _read_csv(path)
        problems += wrong
        files[split] = {}
        for name, label in sorted(rows, key=lambda row: row[::-1]):
            file = there.get(name) or stamped(root / "images" / name)
            files[split].setdefault(label, []).append(file)
    name = f"mini-ImageNet in {root}: images/ with train.csv, val.csv and test.csv"
    return _of_files(name, root, size, files, problems)


def _read_csv(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of file name and label, and what is wrong with the list."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns = reader.fieldnames or []
        if not {"filename", "label"} <= set(columns):
            names = some([name[:30] for name in columns]) or "(none)"
            return [], [f"{path.name} has the columns {names}; it needs filename and label"]
        rows = [(row["filename"], row["label"]) for row in reader]
    except (OSError, ValueError) as error:
        return [], [f"{path.name} {error}"]
    except csv.Error as error:  # an entry of more than 128 kB, for one
        return [], [f"{path.name}, line {reader.line_num + 1}: {error}"]
    problems = [f"{path.name}, line {i + 2}: filename or label is missing" for i, row in enumerate(rows) if not all(row)]
    outside = [name[:60] for name, _ in rows if name and not _inside(name)]
    problems += [f"{path.name} lists files outside images/: {some(outside, 3)}"] if outside else []
    twice = [name[:60] for name, count in Counter(name for name, _ in rows).items() if count > 1]
    problems += [f"{path.name} lists images twice, {len(twice)} of them: {some(twice, 3)}"] if twice else []
    problems += [] if rows else [f"{path.name} lists no images"]
    return ([] if problems else rows), problems


def _inside(name: str) -> bool:
    """Whether a name from a list stays in the folder that it is looked for in."""
    return not (os.path.isabs(name) or "\0" in name or "\\" in name or ".." in name.split("/"))


def _folder_form(root: Path, size: int) -> Source | None:
    if not all((root / split).is_dir() for split in SPLITS):
        return None
    files = {split: classes_in(root / split, SUFFIXES) for split in SPLITS}
    problems = [f"{split}/ has no class folders" for split, classes in files.items() if not classes]
    problems += [
        f"{split}/{name}/ is empty: no {', '.join(SUFFIXES)}"
        for split, classes in files.items()
        for name, found in classes.items()
        if not found
    ]
    name = f"mini-ImageNet in {root}: folders train/, val/ and test/ of class folders"
    return _of_files(name, root, size, files, problems)


def _of_files(name: str, root: Path, size: int, files: dict[str, dict[str, list[File]]], problems: list[str]) -> Source:
    homes: dict[str, list[str]] = {}
    for split, classes in files.items():
        for label in classes:
            homes.setdefault(label, []).append(split)
    problems += [f"class {label} is in {' and '.join(splits)}" for label, splits in homes.items() if len(splits) > 1]
    if problems:
        raise ValueError(report(name, problems, RESTORE))

    def items(split: str) -> Classes:
        return {
            label: [Item(file.path, partial(decode_file, file.path, size, 3, False)) for file in found]
            for label, found in files[split].items()
        }

    every = [*chain(*(found for classes in files.values() for found in classes.values()))]
    lists = {split: {label: len(found) for label, found in classes.items()} for split, classes in files.items()}
    return Source(
        name=name,
        fingerprint=fingerprint(f"files, {size}, {lists}", root, every),
        shape=(3, size, size),
        images=len(every),
        pools={split: partial(items, split) for split in SPLITS},
        advice=RESTORE,
    )


def _nothing_found(root: Path, cache: Path) -> str:
    looked = [
        f"{root}/images/ with train.csv, val.csv and test.csv (Ravi and Larochelle)",
        f"{root}/train/, val/ and test/, with a folder of images per class",
        f"{root}/mini-imagenet-cache-train.pkl, -val.pkl (or -validation.pkl) and -test.pkl (Ren et al.)",
        f"a cache of an earlier run, {cache}",
    ]
    state = "" if root.is_dir() else f" (this {'is no folder' if root.exists() else 'folder does not exist'})"
    advice = f"Name their folder with --data.root, set `download: true`, or put the pickles there by hand, from {BASE_URL}/."
    near = [path for path in [root.parent, *sorted(root.glob("*/"))] if path.is_dir() and _complete(path)]
    if near:
        advice += f" There seems to be something in {near[0]}: set `root` to that folder?"
    return report(f"mini-ImageNet is not in {root}{state}; looked for", looked, advice)


def _complete(root: Path) -> bool:
    csvs = (root / "images").is_dir() and all((root / f"{split}.csv").is_file() for split in SPLITS)
    return csvs or all(pickle_at(root, split) is not None for split in SPLITS)
