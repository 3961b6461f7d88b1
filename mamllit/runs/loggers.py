"""The loggers that the configuration names; the command line tells them where to write and how the run is called."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mamllit.runs import tracking


def of_run(config: Any, run: Path, seed: int | None) -> Any:
    """The loggers of the configuration, writing into the run directory; W&B in the mode asked for, named after the run."""
    loggers, wandb = config.trainer.logger, wandb_mode(config.wandb)
    if not isinstance(loggers, list | Namespace):  # a bool or None: Lightning's own choice
        return loggers
    kept = []
    for entry in loggers if isinstance(loggers, list) else [loggers]:
        kind = entry.class_path.rsplit(".", 1)[-1]
        if kind == "WandbLogger" and wandb == "disabled":
            continue
        if entry.init_args.get("save_dir") in (None, "."):
            entry.init_args.save_dir = str(run)
        if kind == "WandbLogger":
            entry.init_args.offline = wandb == "offline"
            _identify(entry.init_args, run, config, seed)
        kept.append(entry)
    return kept


def wandb_mode(asked: str | None) -> str:
    """ "offline", "online" or "disabled": as asked (--wandb), or as W&B's own variables say, or offline.

    Raises:
        ValueError: for an unknown WANDB_MODE.
    """
    if asked is not None:
        return asked
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "").lower() or "offline"
    known = {"dryrun": "offline", "offline": "offline", "run": "online", "online": "online", "disabled": "disabled"}
    if mode not in known:
        raise ValueError(f"WANDB_MODE is {mode!r}; it must be one of {sorted(known)}, or use --wandb offline")
    return known[mode]


def wandb_entries(loggers: Any) -> list[Any]:
    """The entries of the W&B loggers in a configuration."""
    entries = loggers if isinstance(loggers, list) else [loggers]
    return [entry for entry in entries if isinstance(entry, Namespace) and entry.class_path.endswith("WandbLogger")]


def _identify(arguments: Namespace, run: Path, config: Any, seed: int | None) -> None:
    """Names the W&B run after the run directory: its id too, so that a resumed run and a later test go on in it."""
    group = arguments.get("group") or ""
    own = {
        "name": "/".join(run.parts[-3:]),
        "id": tracking.run_id(run),
        "job_type": group.rpartition("/")[0] or None,
        "tags": tracking.tags(config.model.init_args.get("method") or config.model, config.data, seed),
    }
    for name, value in own.items():
        arguments[name] = arguments.get(name) or value
    # what waits to be uploaded stays with the run
    os.environ.setdefault("WANDB_DATA_DIR", str(run.resolve() / "wandb" / "data"))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")  # W&B waits for hours at the end of a run, for a server that is gone
