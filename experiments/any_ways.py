"""A checkpoint at other numbers of classes than it was trained for: its accuracy on meta-test episodes of 3, 5, 7, 20 ways.

    python experiments/any_ways.py CHECKPOINT --root DIR [--ways 3 5 7 20] [--episodes 200] [--out FILE]

CHECKPOINT is a name of the model zoo or a file of `mamllit export`, of a method whose head takes any number of classes
(`head: zero` or `shared`). DIR holds the images that it was trained on. An episode has K query images per class, as in the MAML
paper's protocol; numbers of inner steps and of shots are the checkpoint's own. FILE, by default
experiments/results/any_ways/NAME.json, is written after each number of ways, and one that is there goes on;
`experiments/tables.py` makes the table of docs/checkpoints.md of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mamllit.data
from mamllit.data import ImageDataModule
from mamllit.engine.evaluation import BATCH_NORMS, readings
from mamllit.pretrained import load, read
from mamllit.runs import durable
from mamllit.runs.provenance import commit

RESULTS = Path(__file__).parent / "results" / "any_ways"
AT_ONCE = 10  # episodes that are built at a time


def measure(checkpoint: str, root: Path, ways: int, episodes: int) -> dict[str, Any]:
    """Accuracy of a checkpoint on `episodes` meta-test episodes of so many `ways`, for each batch norm.

    Raises:
        ValueError: for a checkpoint whose head has as many outputs as it was trained with, or of no images.
    """
    found, method = read(checkpoint)[0], load(checkpoint)
    if getattr(method, "head", None) is None:
        raise ValueError(
            f"{found.name} has a learned head, which knows one number of classes; take one with head: zero or shared"
        )
    arguments = {"ways": ways, "root": str(root), "test_episodes": episodes, "protocols": ["paper"]}
    kind = getattr(mamllit.data, found.data["class_path"].rpartition(".")[2])
    if not issubclass(kind, ImageDataModule):
        raise ValueError(f"{found.name} was trained on a {kind.__name__}, which has no classes; take one of images")
    data = kind(**{**found.data["init_args"], **arguments})
    data.setup("test")
    (evaluation,) = data.evaluation_sets("test")
    step, begun = int(found.model["report_step"]), time.process_time()
    parts = [
        readings(method, data.episodes(evaluation, first, min(AT_ONCE, episodes - first)).episodes, step, BATCH_NORMS)
        for first in range(0, episodes, AT_ONCE)
    ]
    accuracy = {}
    for name in BATCH_NORMS:
        values = torch.cat([part[name][:, -1] for part in parts]).double()
        accuracy[name] = {"mean": float(values.mean()), "ci95": float(1.96 * values.std() / len(values) ** 0.5)}
    return {
        "ways": ways, "shots": evaluation.shots, "queries": evaluation.queries, "episodes": episodes, "steps": step,
        "accuracy": accuracy, "seconds": round(time.process_time() - begun, 1), "commit": commit(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One checkpoint at several numbers of classes.")
    parser.add_argument("checkpoint")
    parser.add_argument("--root", type=Path, required=True, help="the images that the checkpoint was trained on")
    parser.add_argument("--ways", type=int, nargs="+", default=(3, 5, 7, 20))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--out", type=Path, help="the file of results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        measure_all(given)
    except (ValueError, OSError) as error:  # a checkpoint, folder or number that cannot be
        sys.exit(f"any_ways.py: {error}")


def measure_all(given: argparse.Namespace) -> None:
    """Measure each number of ways that the file of results lacks, and write it there.

    Raises:
        ValueError: see `measure`; also where the file is of another checkpoint.
        OSError: where a file or folder is not there, or cannot be written.
    """
    name = read(given.checkpoint)[0].name
    out = given.out or RESULTS / f"{name}.json"
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"checkpoint": name, "rows": []}
    if kept["checkpoint"] != name:
        raise ValueError(f"{out} holds the results of {kept['checkpoint']}, not of {name}; name another file with --out")
    rows = kept["rows"]
    for ways in given.ways:
        if any(row["ways"] == ways for row in rows):
            continue
        rows = sorted([*rows, measure(given.checkpoint, given.root, ways, given.episodes)], key=lambda row: row["ways"])
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.write(out, json.dumps({"checkpoint": name, "rows": rows}, indent=2) + "\n")
        row = next(row for row in rows if row["ways"] == ways)
        print(f"{ways} ways: " + ", ".join(f"{key} {value['mean']:.1%}" for key, value in row["accuracy"].items()), flush=True)


if __name__ == "__main__":
    main()
