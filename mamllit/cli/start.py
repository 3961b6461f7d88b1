"""Where a command writes, and the checkpoint it begins with, from `--ckpt_path`, `--run_name` and the root."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from mamllit import pretrained
from mamllit.cli import run_directory
from mamllit.cli.run_directory import CHECKPOINTS, RunDirectory
from mamllit.pretrained.files import is_meant
from mamllit.runs import checkpoint_io


class Start(NamedTuple):
    """`run`: where results go; `checkpoint`: what is loaded, or None; `held`: the directory, where this process has it."""

    run: Path
    checkpoint: str | None
    held: RunDirectory | None = None


def of_fit(
    root: Path,
    name: str,
    asked: str | None,
    max_steps: int,
    begin_if_none: bool,
    first: bool,
    trusted: Sequence[str] = (),
) -> Start:
    """A fit's: a directory of its own, or with "last", "best" or a file of the run the directory to go on in.

    Args:
        root, name: default_root_dir and the run's name.
        asked: --ckpt_path.
        max_steps: of the Trainer.
        begin_if_none: with "last", begin a run where there is none; so does a job that Slurm has queued again.
        first: whether this is the process that writes.
        trusted: packages whose classes a checkpoint may name.

    Raises:
        FileNotFoundError: where there is nothing to go on from.
        ValueError: for a name or checkpoint that cannot be one.
        OSError: where the directory cannot be written, or another process is training in it.
    """
    if asked is None:
        return _held(run_directory.make(root, name) if first else None, root / name, None)
    if asked not in ("last", "best"):
        file = local_file(asked)
        own = run_directory.run_of(file, root, name)
        if own is None:  # a run of its own, which begins where another one stopped
            return _held(run_directory.make(root, name) if first else None, root / name, str(file))
        return _held(run_directory.take(own) if first else None, own, str(file))
    begin = begin_if_none or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    run = run_directory.newest(root, name)
    if run is None:
        if asked == "best" or not begin:
            raise FileNotFoundError(
                f"no run {root / name} has a checkpoint to resume from: leave --ckpt_path out to start one, or name it with "
                "--run_name, --seed_everything and --trainer.default_root_dir; a job that may be the first of its run passes "
                "--begin_if_none true"
            )
        rank_zero_info(f"no run {root / name} has a checkpoint: starting from scratch")
        return _held(run_directory.take_or_make(root, name) if first else None, root / name, None)
    held = run_directory.take(run) if first else None
    if asked == "best":
        return _held(held, run, str(_existing(run, "best")))
    found = checkpoint_io.newest(run / CHECKPOINTS, max_steps, trusted)
    if found is None and not begin:
        raise FileNotFoundError(
            f"no checkpoint in {run / CHECKPOINTS} can be read: leave --ckpt_path out to start another run beside it"
        )
    return _held(held, run, None if found is None else str(found))


def of_evaluation(root: Path, name: str, asked: str | None) -> Start:
    """A test's or validation's: the newest run that has a checkpoint, or the one that a file lies in. Arguments: see `of_fit`.

    Raises:
        FileNotFoundError: where there is no such checkpoint.
        ValueError: where the result would replace that of another run.
    """
    if asked in (None, "last", "best"):
        run = run_directory.newest(root, name)
        return Start(run or root / name, str(_existing(run or root / name, asked or "last")))
    file = local_file(str(asked))
    return Start(run_directory.run_of(file, root, name) or apart(root, name, str(file)), str(file))


def apart(root: Path, name: str, evaluated: str) -> Path:
    """Where the result of a checkpoint goes that belongs to none of the runs `name`.

    Raises:
        ValueError: where one of those lies there.
    """
    if (run := run_directory.newest(root, name)) is not None:
        raise ValueError(
            f"{evaluated} is not a checkpoint of {run}, whose result it would replace: name the evaluation with --run_name"
        )
    found = run_directory.versions(root, name)
    return found[max(found)] if found else root / name


def pretrained_file(asked: str | None, fitting: bool) -> Path | None:
    """The file of the pretrained checkpoint that `asked` names; None where it means one of a run."""
    if asked is None or not is_meant(asked):
        return None
    path = pretrained.find(asked)
    if fitting:
        raise ValueError(
            f"{path} holds a trained model without the optimiser's state, so `fit` cannot resume it; start a new run "
            f"from its weights with --init_from {asked}, or resume from a .ckpt file of a run"
        )
    return path


def local_file(asked: str) -> Path:
    """The checkpoint file that `--ckpt_path` names.

    Raises:
        ValueError: for an address, which is not fetched, and for a folder.
        FileNotFoundError: where there is none.
    """
    if "://" in asked or "::" in asked or asked.startswith(("data:", "registry")):
        raise ValueError(f"ckpt_path is {asked!r}; checkpoints are not loaded from a URL: download it and name the file")
    path = Path(asked).expanduser()
    if path.is_dir():
        raise ValueError(f"ckpt_path is {asked!r}, a folder; name a file in it, such as {path / CHECKPOINTS / 'last.ckpt'}")
    return _existing_file(path)


def _existing(run: Path, word: str) -> Path:
    return _existing_file(run / CHECKPOINTS / f"{word}.ckpt")


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train first with `mamllit fit` and the same configuration, "
            "or name a file with --ckpt_path"
        )
    return path


def _held(held: RunDirectory | None, run: Path, checkpoint: str | None) -> Start:
    return Start(run if held is None else held.path, checkpoint, held)
