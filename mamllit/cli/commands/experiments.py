"""`mamllit experiments`: the experiment files that come with mamllit, listed, found by name, and copied.

They lie in `experiments/` of a clone, and inside the package of an installed mamllit.
"""

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import copyfile

from jsonargparse import ArgumentParser

PACKAGE = Path(__file__).parents[2]
PREFERRED = "maml"  # whose file a bare name means, where several methods have one of that name


def folder() -> Path:
    """Where the experiment files are.

    Raises:
        FileNotFoundError: where this copy of mamllit has none.
    """
    for place in (PACKAGE / "experiments", PACKAGE.parent / "experiments"):
        if (place / "demo.yaml").is_file():
            return place
    raise FileNotFoundError(f"no experiment files in {PACKAGE} or beside it; install mamllit from a wheel or a clone")


def names() -> dict[str, Path]:
    """Name -> file of everything that `-c` takes: experiments (`maml/sine_10shot`) and overlays (`hardware/cpu`)."""
    root = folder()
    found = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith(("sweeps/", "results/", "benchmarks/"))}


def title(path: Path) -> str:
    """The first line of an experiment's header."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()


def find(asked: str) -> Path:
    """The file that `-c ASKED` means: a path that exists, a name ("maml/sine_10shot") or the end of one ("sine_10shot").

    A bare name that several methods have is MAML's; any other end must be that of one name.

    Raises:
        FileNotFoundError: for an unknown name; it gives the nearest.
        ValueError: for the end of several names, none of them MAML's; it lists them.
    """
    if Path(asked).exists():
        return Path(asked)
    known = names()
    name = re.sub(r"^(\./)?experiments/|\.ya?ml$", "", Path(asked).as_posix())
    matching = [other for other in known if other == name or other.endswith(f"/{name}")]
    preferred = [other for other in matching if other in (name, f"{PREFERRED}/{name}")]
    if len(preferred or matching) == 1:
        return known[(preferred or matching)[0]]
    if matching:
        raise ValueError(f"{asked!r} is the end of several experiments' names; choose one of: {', '.join(matching)}")
    near = difflib.get_close_matches(name, [*known, *(other.rpartition("/")[2] for other in known)], n=3)
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    raise FileNotFoundError(f"no file or experiment is named {asked!r}; {hint}`mamllit experiments` lists the names")


def resolve(args: Sequence[str]) -> list[str]:
    """The arguments of a command line, with the experiments that `-c` and `--config` name as paths."""
    resolved = list(args)
    for i, argument in enumerate(resolved):
        option, equals, value = argument.partition("=")
        if option not in ("-c", "--config"):
            continue
        if equals:
            resolved[i] = f"{option}={find(value)}"
        elif i + 1 < len(resolved):
            resolved[i + 1] = str(find(resolved[i + 1]))
    return resolved


def chosen(pattern: str) -> dict[str, Path]:
    """The experiments whose name, or its last part, a shell pattern matches; "" is all of them.

    Raises:
        ValueError: where it matches none; it gives the near names.
    """
    known = names()
    if not pattern:
        return known
    found = {n: p for n, p in known.items() if any(fnmatchcase(part, pattern) for part in (n, n.rpartition("/")[2]))}
    found = found or {name: path for name, path in known.items() if name.startswith(f"{pattern.rstrip('/')}/")}
    if not found:
        near = difflib.get_close_matches(pattern, known, n=3)
        hint = f"near: {', '.join(near)}; " if near else ""
        raise ValueError(f"no experiment matches {pattern!r}; {hint}`mamllit experiments` lists all {len(known)}")
    return found


def copy(files: dict[str, Path], target: Path) -> list[Path]:
    """Copy experiments into a folder, as `<target>/<name>.yaml`; nothing is overwritten.

    Raises:
        FileExistsError: where one is there already; none is copied then.
    """
    places = {path: target.expanduser() / f"{name}.yaml" for name, path in files.items()}
    if there := [str(place) for place in places.values() if place.exists()]:
        raise FileExistsError(f"{there[0]} already exists; remove it or name a folder other than {target}")
    for path, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        copyfile(path, place)
    return list(places.values())


def main(args: Sequence[str]) -> None:
    """List the experiments that `-c` takes by name, or copy some of them."""
    parser = ArgumentParser(prog="mamllit experiments", description=(main.__doc__ or "").split("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="a method (maml), a name, or a shell pattern ('*/sine_*')")
    parser.add_argument("--copy", type=Path | None, default=None, metavar="DIR", help="copy the files there for editing")
    given = parser.parse_args(list(args))
    files = chosen(given.pattern)
    if given.copy is not None:
        for place in copy(files, given.copy):
            print(place)
        return
    width = max(map(len, files))
    for name, path in files.items():
        print(f"{name:{width}}  {title(path)}")
