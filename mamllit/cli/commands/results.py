"""`mamllit results add RUN_DIR`: file what a run measured as data, one JSON file per cell and seed.

The tables of the documentation are written from these files by `experiments/tables.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from mamllit.cli.commands.experiments import names
from mamllit.runs import durable
from mamllit.runs.tracking import flat, of_system

FOLDER = Path("experiments/results")
KEPT = ("protocol", "batch_norm", "shots", "queries", "episodes", "mean", "ci95", "median", "diverged")
FREE = (  # what says nothing about the training: where it runs, how it is watched, how it is evaluated
    "trainer.default_root_dir", "trainer.logger", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.val_check_interval", "trainer.enable_progress_bar", "seed_everything", "threads", "wandb", "run_name",
    "test_after_fit", "ckpt_path", "checkpoint_last", "checkpoint_best", "results", "figures", "progress", "dashboard",
    "config", "init_from", "model.eval_steps", "model.report_step", "model.log_every", "model.batch_norm", "model.execution",
    "model.compile", "model.memory",
    "data.init_args.root", "data.init_args.download", "data.init_args.cache_dir", "data.init_args.num_workers",
    "data.init_args.protocols", "data.init_args.test_shots", "data.init_args.test_episodes", "data.init_args.test_streams",
    "data.init_args.standard_episodes", "data.init_args.val_episodes", "data.init_args.eval_batch_size",
)  # fmt: skip


def record(run_dir: str | Path) -> dict[str, Any]:
    """What a run measured, and how far it was trained, as it is kept.

    `changed` has every setting of the experiment's file that the run did not have, with both values: a run of another length or
    with another learning rate is no row of the experiment's table.

    Raises:
        FileNotFoundError: where the run lacks a file.
        ValueError: for a run that belongs to no experiment of mamllit's, or was not tested.
    """
    run = Path(run_dir).expanduser()
    if missing := [str(run / name) for name in ("config.yaml", "result.json") if not (run / name).is_file()]:
        raise FileNotFoundError(f"{run} is not a run directory of `mamllit fit`; missing: {', '.join(missing)}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    cell, experiment = _experiment(config)
    tested = {name: entry for name, entry in result.get("results", {}).items() if entry["split"] == "test"}
    if not tested:
        raise ValueError(f"{run} was not tested: run `mamllit test` with its configuration first")
    fit = result.get("fit") or {}
    return {
        "cell": cell,
        "seed": result["seed"],
        "method": result["method"],
        "metric": result["metric"],
        "checkpoint": _checkpoint(result),
        "steps_done": result["steps_done"],
        "of_steps": _made(result),
        "changed": changes(experiment, config),
        "started_from": _portable(fit.get("started_from")),
        "seconds": fit.get("seconds"),
        "commit": fit.get("commit") if result["steps_done"] else result["commit"],  # untrained weights are those of the test
        "tested_at": result["commit"],
        "versions": result["versions"],
        "machine": result["machine"],
        "results": {name: {key: entry[key] for key in KEPT if key in entry} for name, entry in tested.items()},
    }


def _experiment(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the experiment whose runs lie where this one does."""
    from mamllit.cli.program import settings  # which imports Lightning: not for a message about a missing file

    groups = [
        (entry.get("init_args") or {}).get("group")
        for entry in (config["trainer"].get("logger") or [])
        if isinstance(entry, Mapping)
    ]
    root = str(config["trainer"].get("default_root_dir") or "")
    below = re.sub(r"^.*?runs/", "", root)
    known = names()
    for name in [*(group for group in groups if group), below]:
        if name in known:
            return name, settings(known[name])
    raise ValueError(
        f"no experiment has the run's folder {root!r} or W&B group {groups}, and results are stored by experiment; "
        "`mamllit experiments` lists the names"
    )


def changes(experiment: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every setting that both know and the run had otherwise; what says nothing about the training is left out, and so are the
    sizes that the experiment leaves to the data."""
    asked, had = (flat({**settings, "model": of_system(settings)}) for settings in (experiment, config))
    free = re.compile("|".join(rf"{re.escape(name)}(\..*)?" for name in FREE))
    asked = {name: value for name, value in asked.items() if value != "data" and not free.fullmatch(name)}
    names = [name for name in asked if name in had and had[name] != asked[name]]
    return {name: {"experiment": asked[name], "run": had[name]} for name in names}


def _portable(origin: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a run began with, without the folder of the machine that its file lay in: from `runs/` on, else the name alone."""
    if origin is None:
        return None
    name = Path(origin["name"])
    if name.is_absolute():
        parts = name.parts
        name = Path(*parts[parts.index("runs") :]) if "runs" in parts else Path(name.name)
    return {**origin, "name": name.as_posix()}


def _checkpoint(result: Mapping[str, Any]) -> str:
    best = (result.get("best_checkpoint") or {}).get("step")
    last = (result.get("fit") or {}).get("steps_asked")
    return "best" if result["steps_done"] == best != last else "last"


def _made(result: Mapping[str, Any]) -> int:
    """The iterations of the whole run; its best checkpoint has fewer behind it."""
    fit = result.get("fit") or {}
    whole = _checkpoint(result) == "best" and "stopped" not in fit
    return int(fit["steps_asked"] if whole else result["steps_done"])


def add(run_dir: str | Path, to: str | Path = FOLDER) -> Path:
    """Write the record of a run to `<to>/<cell>/seed_<seed>.json`; returns the file.

    Raises:
        FileNotFoundError: see `record`; also where the folder `to` is not there.
        ValueError: see `record`; also where the file is there and says that more iterations were made.
    """
    folder = Path(to).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; run this in a clone of mamllit or name a folder with --to")
    kept = record(run_dir)
    path = folder / kept["cell"] / f"seed_{kept['seed']}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps_done": 0}
    if (before := known.get("of_steps", known["steps_done"])) > kept["of_steps"]:
        raise ValueError(
            f"{path} is from {before:,} iterations, and this run made {kept['of_steps']:,}; remove the file to store "
            "the shorter run"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, text(kept))
    return path


def text(kept: Mapping[str, Any]) -> str:
    """JSON with each list of numbers in one line, so that a change can be read."""
    lines = json.dumps(kept, indent=2)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r",\s+", ", ", match[1]) + "]", lines) + "\n"


def main(args: Sequence[str]) -> None:
    """File what a run measured, for the tables of the documentation."""
    parser = ArgumentParser(prog="mamllit results", description=(main.__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=["add"], help="add: store the result of a run")
    parser.add_argument("run_dir", type=Path, nargs="+", help="run directories of `mamllit fit`")
    parser.add_argument("--to", type=Path, default=FOLDER, help="results folder (default: %(default)s)")
    given = parser.parse_args(list(args))
    for run_dir in given.run_dir:
        path = add(run_dir, given.to)
        kept = json.loads(path.read_text(encoding="utf-8"))
        changed = f"; changed: {', '.join(kept['changed'])}" if kept["changed"] else ""
        print(f"{path}: {kept['steps_done']:,} iterations{changed}")
    print("next, update the tables: python experiments/tables.py")
