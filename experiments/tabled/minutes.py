"""What minutes of training buy: accuracy beside time, of every image experiment that was tried, as a table and a figure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabled.data import RESULTS, ROOT, cells, interval, markdown

FIGURE = ROOT / "docs" / "figures" / "minutes.png"
DATA = {"OmniglotDataModule": "Omniglot", "MiniImagenetDataModule": "mini-ImageNet"}


@dataclass(frozen=True)
class Point:
    """One run: `task` "Omniglot, 5-way 1-shot"; accuracies are (mean, 95% interval), inductive None where it was not read."""

    task: str
    cell: str
    iterations: int
    asked: int
    minutes: float
    accuracy: tuple[float, float]
    inductive: tuple[float, float] | None


def points() -> list[Point]:
    """All image runs whose time is known, by task, the most accurate first; paper's protocol."""
    found = [point for cell in cells() for record in list(cell.seeds.values())[:1] for point in _points(cell, record)]
    return sorted(found, key=lambda point: (point.task, -point.accuracy[0]))


def _points(cell: Any, record: dict[str, Any]) -> Iterator[Point]:
    module, arguments = cell.document["data"]["class_path"].rpartition(".")[2], cell.document["data"]["init_args"]
    if record["metric"] != "accuracy" or module not in DATA or not record["seconds"]:
        return
    for name, entry in record["results"].items():
        if re.fullmatch(r"paper(/\d+-shot)?", name) is None:
            continue
        step = cell.report_step
        inductive = record["results"].get(f"{name}/inductive")
        task = f"{DATA[module]}, {arguments['ways']}-way {entry['shots']}-shot"
        seconds = record["seconds"] + _before(record.get("started_from"))
        yield Point(
            task, cell.name, record["steps_done"], cell.steps_asked, seconds / 60, _value(entry, step),
            _value(inductive, step) if inductive else None,
        )  # fmt: skip


def _value(entry: dict[str, Any], step: int) -> tuple[float, float]:
    return entry["mean"][step], entry["ci95"][step]


def _before(started_from: dict[str, Any] | None) -> float:
    """Seconds of the training with whose weights a run began, and of what that one began with."""
    if started_from is None:
        return 0.0
    known = {cell.name: cell for cell in cells()}
    match = re.fullmatch(r"runs/(.+)/seed_(\d+)/checkpoints/.+", started_from["name"])
    of_file = {name.replace("/", "_"): name for name in known}  # a checkpoint that comes with mamllit is named after its cell
    name = match[1] if match else of_file.get(started_from["name"])
    if name not in known:
        raise ValueError(f"{started_from['name']} is of no run in {RESULTS}: file that one first, by `mamllit results add`")
    record = known[name].seeds[int(match[2]) if match else started_from["seed"]]
    return float(record["seconds"]) + _before(record.get("started_from"))


def minutes() -> str:
    """The table: accuracy by the paper's protocol, and minutes of training, those of its pre-training included."""

    def rows() -> Iterator[list[str]]:
        for p in points():
            inductive = interval("accuracy", *p.inductive) if p.inductive else ""
            yield [p.task, f"[{p.cell}](experiments/{p.cell}.yaml)", f"{p.iterations:,} / {p.asked:,}", f"{p.minutes:.0f}",
                   interval("accuracy", *p.accuracy), inductive]  # fmt: skip

    return markdown(["task", "experiment", "iterations done / asked", "minutes", "transductive", "inductive"], rows())


def draw(path: Path = FIGURE) -> None:
    """The figure: accuracy against minutes, one panel for each task that has at least three runs."""
    import matplotlib.pyplot as plt

    known = points()
    tasks = [task for task in dict.fromkeys(p.task for p in known) if sum(p.task == task for p in known) >= 3]
    figure, axes = plt.subplots(len(tasks), 1, figsize=(7, 4.5 * len(tasks)), squeeze=False, layout="constrained")
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        for p in (p for p in known if p.task == task):
            done = p.iterations >= p.asked
            axis.errorbar(
                p.minutes, 100 * p.accuracy[0], 100 * p.accuracy[1], fmt="o", color="C0" if done else "0.6", markersize=5
            )
            axis.annotate(
                _label(p.cell), (p.minutes, 100 * p.accuracy[0]),
                textcoords="offset points", xytext=(6, 3), fontsize=8,
            )  # fmt: skip
        ticks = [
            t for t in (2, 5, 10, 20, 50, 100, 200, 500) if any(t / 3 < p.minutes < 3 * t for p in known if p.task == task)
        ]
        axis.set(xscale="log", xlabel="minutes of training, one CPU thread", ylabel="accuracy, %", title=task)
        axis.set_xticks(ticks, map(str, ticks), minor=False)
        axis.set_xticks([], minor=True)
        axis.margins(x=0.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(cell: str) -> str:
    """ "maml/omniglot_5way_1shot_mlp" -> "maml, mlp"."""
    folder, _, name = cell.partition("/")
    variant = re.sub(r".*_\d+way(_\d+shot)?_?|.*imagenet_", "", name).replace("_", " ")
    return folder.replace("_", " ") + (f", {variant}" if variant else "")
