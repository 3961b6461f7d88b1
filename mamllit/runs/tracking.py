"""What a tracker is told about a run besides its numbers: its identity, and how it differs from its experiment.

An experiment's file holds the paper's settings, and its header the departures from the paper. So a run is described by the
table (the folder), the cell (the file), the seed, and every setting that is not the file's.
"""

import os
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

ID_FILE = "wandb_run_id"  # in a run directory
OWN = (  # where a run lands and how it is watched; no setting of the experiment
    "config",
    "ckpt_path",
    "trainer.default_root_dir",
    "trainer.logger",
    "run_name",
    "begin_if_none",
    "trusted",
    "debug",
    "threads",
    "wandb",
    "checkpoint_last.dirpath",
    "checkpoint_best.dirpath",
    "seed_everything",
    "data.init_args.root",
)


def run_id(run: Path) -> str:
    """The id of the tracker's run that belongs to a run directory: the same after a resume, and for a later test.

    A sweep's agent, or the user, may give one by WANDB_RUN_ID; else it is made up and kept in the file `wandb_run_id`.
    """
    if asked := os.environ.get("WANDB_RUN_ID"):
        return asked
    path = run / ID_FILE
    if path.exists():
        known = path.read_bytes().decode(errors="replace").strip()
        if re.fullmatch(r"[\w-]{1,64}", known, re.ASCII):
            return known
        if known:
            warnings.warn(f"{path} holds {known!r:.80}, which is not a W&B id; the run gets a new one", stacklevel=2)
    made = secrets.token_hex(4)
    if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks log nothing
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made)
    return made


def sweep_suffix() -> str:
    """What a run of a sweep adds to the name of its directory, so that two agents never take the same; "" outside of one."""
    return f"_{os.environ.get('WANDB_RUN_ID')}" if "WANDB_SWEEP_ID" in os.environ else ""


def tags(method: Mapping[str, Any], data: Mapping[str, Any], seed: int | None) -> list[str]:
    """Words to filter by: method, data set, ways, shots, seed; `method` and `data` are their configurations."""
    init, own = data.get("init_args") or {}, method.get("init_args") or {}
    words = [_name(method), _name(data).removesuffix("DataModule")]
    words += [f"{init[key]}-{word}" for key, word in (("ways", "way"), ("shots", "shot")) if init.get(key) is not None]
    words += ["first order"] if own.get("first_order") else []
    return [*words, "no seed" if seed is None else f"seed {seed}"]


def _name(config: Mapping[str, Any]) -> str:
    return str(config.get("class_path", "")).rsplit(".", 1)[-1]


def cell(files: Sequence[str | Path]) -> Path | None:
    """The experiment among the configuration files: the first with a header that names its paper."""
    for file in map(Path, files):
        if file.is_file() and re.search(r"^# Paper: ", file.read_text(encoding="utf-8"), re.MULTILINE):
            return file
    return None


def header(file: Path) -> dict[str, str]:
    """`title`, `paper` and `departures` as an experiment's header states them, each in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#"))
    found = {"title": lines[0].strip() if lines else ""}
    key = "title"
    for line in lines[1:]:
        if match := re.match(r" (\w+): (.*)", line):
            key, text = match[1].lower(), match[2]
            found[key] = text.strip()
        else:
            found[key] += f" {line.strip()}"
    return {name: found[name] for name in ("title", "paper", "departures") if name in found}


def of_system(config: Mapping[str, Any]) -> dict[str, Any]:
    """The system's settings in a configuration. One of an older version may name no system: they are what `model` holds."""
    model: dict[str, Any] = config.get("model") or {}
    return model.get("init_args") or model


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every setting that differs, by its dotted name: {"experiment": value, "run": value}; where a run lands is left out."""
    old, new = flat(before), flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    names = [name for name in names if not any(name == own or name.startswith(f"{own}.") for own in OWN)]
    return {name: {"experiment": old.get(name), "run": new.get(name)} for name in names}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def describe(
    group: str, seed: int | None, file: Path | None, before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes into the tracker's configuration under "experiment", to group and filter by.

    Args:
        group: the experiment's name, `table/cell`.
        file, before: the experiment's file and settings, None where the run has none.
        now: the run's settings.
    """
    table, _, name = group.rpartition("/")
    described: dict[str, Any] = {"table": table, "cell": name, "seed": seed}
    if file is not None and before is not None:
        changed = changes(before, now)
        described |= {**header(file), "changed": changed, "as_written": not changed}
    return described
