"""From a run directory to a checkpoint file, and the table of the checkpoints that come with mamllit."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from mamllit.data.preparation import preparation_of
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.files import FOLDER, LIMIT, SUFFIX, Checkpoint, DType, find, names, read, steps_before, write
from mamllit.runs import durable
from mamllit.runs.tracking import of_system

PREFIX = "method."  # of the meta-parameters in a Lightning checkpoint of MetaLearner
LEFT_OUT = {"root", "download", "cache_dir"}  # of the data: where the images lay concerns nobody else
LISTS = {"train_classes", "val_classes", "test_classes"}  # may be paths of files too
KEPT = ("method", "metric", "transductive", "seed", "commit", "versions", "machine", "fit")  # of result.json
TABLE = "README.md"


def export(
    run_dir: str | Path,
    ckpt: Literal["last", "best"] = "last",
    out: str | Path | None = None,
    dtype: DType = "float32",
    limit: int = LIMIT,
    result: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = (),
) -> Path:
    """Write the meta-parameters of a run, with its configuration and result, as one file.

    Args:
        run_dir: directory of a run of `mamllit fit`, with config.yaml, result.json and checkpoints/.
        ckpt: "last", the paper's choice, or "best", the best on meta-val.
        out: the file; by default `<name of the cell>.safetensors` in the run directory. A file in the package's own folder
            is one that comes with mamllit; the table there is then written anew.
        dtype: "float16" halves the file and rounds the weights; the numbers in it were measured before the rounding.
        limit: bytes that the file may have.
        result: what result.json would say of this checkpoint, where it was measured otherwise.
        trusted: packages of your own whose classes the run's configuration may name; see `mamllit.pretrained.load`.

    What result.json holds of other steps than the checkpoint's is left out, with a warning. A pre-training run gives its
    backbone without the head, as prototypical networks with the cosine; a method with the same backbone can start from it.

    Raises:
        FileNotFoundError: where the run lacks a file.
        ValueError: if result.json is about another step than the checkpoint, if the checkpoint cannot be rebuilt, if the
            file does not end in .safetensors, or would be larger than `limit`.
    """
    run = Path(run_dir).expanduser()
    if ckpt not in ("last", "best"):
        raise ValueError(f"ckpt is {ckpt!r}; it must be 'last' or 'best'")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32' or 'float16'")
    needed = {"config": run / "config.yaml", "result": run / "result.json", "weights": run / "checkpoints" / f"{ckpt}.ckpt"}
    if missing := [str(path) for path in needed.values() if not path.is_file()]:
        raise FileNotFoundError(f"{run} is not the directory of a complete run of `mamllit fit`; missing: {', '.join(missing)}")
    config = yaml.safe_load(needed["config"].read_text())
    saved = torch.load(needed["weights"], map_location="cpu", weights_only=True)
    asked = config["trainer"]["max_steps"]
    result = _of_step(json.loads(needed["result"].read_text()), saved["global_step"]) if result is None else result
    path = Path(out).expanduser() if out is not None else run / f"{cell_name(config)}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise ValueError(f"the file is {path}; its name must end in {SUFFIX}")
    data = config["data"]
    arguments = {
        name: value
        for name, value in data["init_args"].items()
        if name not in LEFT_OUT and not (name in LISTS and isinstance(value, str))
    }
    checkpoint = Checkpoint(
        name=path.stem,
        model=_model(config),
        data={"class_path": data["class_path"], "init_args": arguments, **_preparation(saved, data)},
        result=_result(result, saved["global_step"], asked, ckpt, config.get("results") or {}),
        stored_as=dtype,
    )
    tensors = {name[len(PREFIX) :]: value for name, value in saved["state_dict"].items() if name.startswith(PREFIX)}
    rebuild(checkpoint, tensors, trusted)  # what cannot be loaded is not written
    write(path, checkpoint, tensors, limit)
    if path.resolve().parent == FOLDER.resolve():
        write_table()
    return path


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The system's settings. A pre-training becomes the method that evaluates it: the nearest class mean by cosine."""
    model = of_system(config)
    if "method" in model or "backbone" not in model:
        return model
    arguments = {
        "backbone": model["backbone"],
        "objective": {"class_path": "mamllit.objectives.Classification"},
        "distance": "cosine",
    }
    method = {"class_path": "mamllit.methods.PrototypicalNetworks", "init_args": arguments}
    return {**model, "method": method, "eval_steps": 0, "report_step": 0}


def _preparation(saved: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """How the images were prepared, as the run's checkpoint says; of an older run, as its data module does it."""
    how = preparation_of(saved if "preparation" in saved else data)
    return {} if how is None else {"preparation": how.as_dict()}


def cell_name(config: Mapping[str, Any]) -> str:
    """The name of an experiment from where its runs lie: runs/maml/omniglot_5way_1shot -> maml_omniglot_5way_1shot."""
    parts = Path(config["trainer"]["default_root_dir"] or "run").parts
    below = parts[parts.index("runs") + 1 :] if "runs" in parts[:-1] else parts[-1:]
    return "_".join(below)


def write_table() -> None:
    """Write the table of all files in the package's folder, beside them."""
    durable.write(FOLDER / TABLE, table())


def table() -> str:
    """The Markdown table of the checkpoints that come with mamllit, from the files alone."""
    lines = [
        "# Trained checkpoints",
        "",
        "Written by `mamllit export`; do not edit. Measured on meta-test after the number of inner steps in the third column,",
        "with the 95% interval over the episodes. `paper[n]` means n episodes. float16: the weights are stored rounded.",
        "",
        "| name | iterations done / asked | inner steps | measured | published | seed, checkpoint | stored | measured at |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(read(name)[0]) for name in names()),
    ]
    return "\n".join(lines) + "\n"


def _row(checkpoint: Checkpoint) -> str:
    result, steps = checkpoint.result, checkpoint.steps
    percent = result["metric"] == "accuracy"

    def number(value: float) -> str:
        return f"{100 * value:.2f}%" if percent else f"{value:.3g}"

    measured = [
        f"{name}: {number(entry['mean'][steps])} ± {number(entry['ci95'][steps])} ({entry['episodes']} x {entry['queries']})"
        for name, entry in result["results"].items()
    ]
    published = [f"{name}: {number(v[str(steps)])}" for name, v in result["published"].items() if str(steps) in v]
    before = f"{earlier:,} + " if (earlier := steps_before(result)) else ""
    cells = [
        f"`{checkpoint.name}`",
        f"{before}{result['steps_done']:,} / {result['steps_asked']:,}",
        str(steps),
        "<br>".join(measured) or "not measured",
        "<br>".join(published),
        f"{result['seed']}, {result['checkpoint']}",
        f"{checkpoint.stored_as}, {find(checkpoint.name).stat().st_size / 1000:.0f} kB",
        (result["commit"] or "unknown")[:7],
    ]
    return f"| {' | '.join(cells)} |"


def _result(result: Mapping[str, Any], step: int, asked: int, ckpt: str, printed: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a result: no command line and no reason of a stop, for they name folders of the machine; numbers to six
    digits."""
    if result["steps_done"] != step:
        raise ValueError(
            f"result.json describes the weights after {result['steps_done']} steps, but {ckpt}.ckpt holds those after {step}: "
            f"run `mamllit test -c CONFIG --ckpt_path {ckpt}` first, or export the other checkpoint"
        )
    measured = {
        name: {
            **{key: entry[key] for key in ("protocol", "shots", "queries", "episodes")},
            **{key: [_six_digits(value) for value in entry[key]] for key in ("mean", "ci95")},
        }
        for name, entry in result.get("results", {}).items()
        if entry["split"] == "test"
    }
    kept = {key: result.get(key) for key in KEPT}
    if kept["fit"]:
        kept["fit"] = {key: value for key, value in kept["fit"].items() if key != "stopped"}
    return kept | {
        "steps_done": step,
        "steps_asked": asked,
        "checkpoint": ckpt,
        "results": measured,
        "published": {
            name: {str(k): v for k, v in values.items()} for name, values in (printed.get("published") or {}).items()
        },
    }


def _of_step(result: dict[str, Any], step: int) -> dict[str, Any]:
    """The result without what was measured on meta-test at another step, or at none that is known."""
    found = result.get("results", {})
    of_others = {
        name: entry.get("step") for name, entry in found.items() if entry["split"] == "test" and entry.get("step") != step
    }
    if of_others and result["steps_done"] == step:
        listed = ", ".join(f"{name} (step {'unknown' if at is None else at})" for name, at in of_others.items())
        warnings.warn(
            f"left out, since the checkpoint is from step {step}: {listed}; to include it, run `mamllit test` before exporting",
            stacklevel=3,
        )
    return {**result, "results": {name: entry for name, entry in found.items() if name not in of_others}}


def _six_digits(value: float | str) -> float | str:
    return float(f"{value:.6g}") if isinstance(value, float) else value
