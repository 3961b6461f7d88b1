"""A picture of what the W&B dashboard shows of a run, drawn from nothing but the file that the run logged.

    python experiments/dashboard_picture.py runs/maml/omniglot_5way_1shot/seed_0 --out dashboard.png

It is matplotlib's, not W&B's: the same numbers, charts, table and images, in another frame.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mamllit.runs.wandb_file import contents


def series(axes: Axes, history: list[dict[str, Any]], keys: list[str]) -> None:
    for key in keys:
        points = [(row["trainer/global_step"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", linewidth=1.2, label=key)
    axes.set_xlabel("trainer/global_step", fontsize=7)
    axes.legend(fontsize=7)


def curve(axes: Axes, key: str, history: list[dict[str, Any]], files: Path) -> None:
    table = rows(history, f"{key}_table", files)
    for name in dict.fromkeys(row["lineKey"] for row in table):
        own = [(row["step"], row["lineVal"]) for row in table if row["lineKey"] == name]
        axes.plot(*zip(*own, strict=True), linewidth=0.6 if "95%" in name else 1.6, label=name)
    axes.set_xlabel("inner steps", fontsize=7)
    axes.legend(fontsize=5)


def rows(history: list[dict[str, Any]], key: str, files: Path) -> list[dict[str, Any]]:
    entry = next(row[key] for row in reversed(history) if key in row)
    return as_rows(files / entry["path"])


def as_rows(file: Path) -> list[dict[str, Any]]:
    table = json.loads(file.read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def histogram(axes: Axes, key: str, history: list[dict[str, Any]]) -> None:
    """Over the steps, as W&B draws it: darker where more values are."""
    found = []
    for row in history:
        if key in row:
            found.append((row["trainer/global_step"], row[key]["bins"], row[key]["values"]))
    edges = np.linspace(min(b[0] for _, b, _ in found), max(b[-1] for _, b, _ in found), 65)
    image = np.stack([np.interp(edges[:-1], b[:-1], v, left=0, right=0) for _, b, v in found], 1)
    axes.imshow(image, aspect="auto", origin="lower", cmap="Blues", extent=(found[0][0], found[-1][0], edges[0], edges[-1]))
    axes.set_xlabel("trainer/global_step", fontsize=7)


def episodes(figure: Figure, grid: Any, table: list[dict[str, Any]], pictures: dict[str, str]) -> None:
    columns = [name for name in table[0] if name != "episode"]
    inner = grid.subgridspec(len(table) + 1, len(columns), wspace=0.02, hspace=0.1)
    for c, name in enumerate(columns):
        for r, row in enumerate([{name: name}, *table]):
            axes = figure.add_subplot(inner[r, c])
            axes.axis("off")
            value = row[name]
            if isinstance(value, dict):
                axes.imshow(np.asarray(Image.open(pictures[value["path"]])), cmap="gray")
            else:
                axes.text(0.5, 0.5, str(value), ha="center", va="center", fontsize=7, weight="bold" if r == 0 else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    arguments = parser.parse_args()
    file = max(arguments.run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    logged, files = contents(file), file.parent / "files"
    head, history = logged.run, logged.history
    pictures = {entry.path: entry.local_path for artifact in logged.artifacts for entry in artifact.manifest.contents}
    keys = sorted({key for row in history for key in row})

    def having(start: str, end: str = "") -> list[str]:
        return [key for key in keys if key.startswith(start) and key.endswith(end)]

    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 1.5))
    metric = next(key for key in having("val/") if "_step" not in key)
    panels = [
        ("train/meta_loss", lambda axes: series(axes, history, ["train/meta_loss"])),
        (
            metric,
            lambda axes: series(axes, history, [key for key in having(metric, "_mean") if key[-7:-5] in ("p0", "p1", "p3")]),
        ),
    ]
    chart = next(key.removesuffix("_table") for key in having("adaptation/", "_table") if "adaptation/val" not in key)
    panels.append((chart, lambda axes: curve(axes, chart, history, files)))
    if names := [key for key in having("gradients/") if "weight" in key]:
        panels.append((names[0], lambda axes: histogram(axes, names[0], history)))
    for i, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(grid[0, i])
        draw(axes)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
    if any("test/episodes" in row for row in history):
        table = as_rows(Path(pictures["test/episodes.table.json"]))  # the artifact's, which names the images
        episodes(figure, grid[1, :], [row for row in table if row["episode"] == 0][:5], pictures)
    figure.suptitle(f"{head.display_name}   group {head.run_group}   tags {', '.join(head.tags)}", fontsize=10)
    figure.savefig(arguments.out, dpi=110)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
