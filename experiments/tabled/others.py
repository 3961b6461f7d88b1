"""The tables of something else than an experiment's results: the speed of a step, the methods there are."""

import ast
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tabled import data

KEYS = ("median", "min", "max")  # of ratios
EQUAL = 1e-6  # apart, two shares of the same hits differ in rounding alone
PROTOTYPICAL = ("plain PyTorch", "easyfsl", "learn2learn")
COMPETITORS = {"learn2learn": "learn2learn", "autograd": "plain autograd", "torchopt": "TorchOpt", "higher": "higher"}


def speed() -> str:
    """One meta-training step: mamllit's time, and the time of the others over mamllit's, on each machine."""

    def rows() -> Iterator[list[str]]:
        for folder in sorted(path for path in (data.RESULTS / "speed").iterdir() if path.is_dir()):
            if not (folder / "steps.csv").exists():
                continue
            machine, table = _measured(folder, "steps.csv")
            for row in dict.fromkeys(entry["row"] for entry in table):
                here = {e["competitor"]: e for e in table if e["row"] == row}
                base = here["mamllit"]
                yield [
                    machine,
                    f"`{row}`",
                    base["threads"],
                    duration(float(base["seconds_median"])),
                    *(_ratio(here.get(name)) for name in COMPETITORS),
                ]

    header = ["machine, commit", "row", "threads", "mamllit", *(f"{name} / mamllit" for name in COMPETITORS.values())]
    return data.markdown(header, rows())


def plain_loops() -> str:
    """One training step of systems that other libraries do not have, and how long a plain loop takes for it."""

    def rows() -> Iterator[list[str]]:
        for folder in sorted(path.parent for path in (data.RESULTS / "speed").glob("*/plain_loops.csv")):
            machine, table = _measured(folder, "plain_loops.csv")
            for entry in table:
                ratios = (_ratio({f"ratio_{key}": entry[f"{kind}_ratio_{key}"] for key in KEYS}) for kind in ("clock", "cpu"))
                yield [
                    machine,
                    f"{entry['system']}, `{entry['cell']}`",
                    entry["threads"],
                    duration(float(entry["mamllit_clock"])),
                    *ratios,
                ]

    found = list(rows())
    header = ["machine, commit", "system", "threads", "mamllit", "plain loop / mamllit", "by CPU time"]
    return data.markdown(header, iter(found)) if found else "Not measured yet.\n"


def metric_loops() -> str:
    """Images per second of a prototypical training step, and how long others take for the same step."""

    def rows() -> Iterator[list[str]]:
        for folder in sorted(path.parent for path in (data.RESULTS / "speed").glob("*/metric_loops.csv")):
            machine, table = _measured(folder, "metric_loops.csv")
            for row in dict.fromkeys(entry["row"] for entry in table):
                here = {entry["competitor"]: entry for entry in table if entry["row"] == row}
                base = here["mamllit"]
                for name in PROTOTYPICAL:
                    begins = [machine, f"`{row}`", base["threads"], f"{float(base['images_per_second']):.0f}", name]
                    if (entry := here.get(name)) is None:
                        yield [*begins, "not installed", "", ""]
                        continue
                    kinds = ({f"ratio_{key}": entry[f"{kind}_ratio_{key}"] for key in KEYS} for kind in ("clock", "cpu"))
                    yield [*begins, f"{float(entry['images_per_second']):.0f}", *(_ratio(kind) for kind in kinds)]

    found = list(rows())
    header = [
        "machine, commit",
        "row",
        "threads",
        "mamllit, images/s",
        "beside",
        "images/s",
        "its time / mamllit's",
        "by CPU time",
    ]
    return data.markdown(header, iter(found)) if found else "Not measured yet.\n"


def _measured(folder: Path, name: str) -> tuple[str, list[dict[str, str]]]:
    """The machine and the commit of a benchmark's folder, and its table `name`."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return f"{facts['processor']}, `{facts['commit'][:7]}`", list(csv.DictReader(file))


def _ratio(entry: dict[str, str] | None) -> str:
    if entry is None:
        return ""
    median, low, high = (float(entry[f"ratio_{key}"]) for key in KEYS)
    digits = 1 if median >= 10 else 2
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def methods() -> str:
    """Every method: what its file's docstring calls it, its experiments, its paper."""

    def rows() -> Iterator[list[str]]:
        folder = data.ROOT / "mamllit" / "methods"
        imported = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        stems = [node.module.rsplit(".", 1)[-1] for node in imported if isinstance(node, ast.ImportFrom) and node.module]
        for stem in (stem for stem in stems if stem not in ("base", "inner_loop_method")):
            source = (folder / f"{stem}.py").read_text(encoding="utf-8")
            docstring = ast.get_docstring(ast.parse(source)) or stem
            paper = re.search(r"\d{4}\.\d{5}", docstring)
            classes = re.findall(r"^class (\w+)", source, re.MULTILINE)
            used = re.compile(rf"class_path: mamllit\.methods\.({'|'.join(classes)})\n")
            files = [
                f for f in sorted((data.ROOT / "experiments").rglob("*.yaml")) if used.search(f.read_text(encoding="utf-8"))
            ]
            yield [
                docstring.split("\n", 1)[0].rstrip("."),
                f"`mamllit/methods/{stem}.py`",
                str(len(files)),
                f"[{paper[0]}](https://arxiv.org/abs/{paper[0]})" if paper else "",
            ]

    return data.markdown(["method", "file", "experiments", "paper"], rows())


def templates() -> str:
    """The templates for one's own images, each trained as it stands on a set that docs/own_images.md names."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in data.cells() if cell.name.startswith("own_"))):
            for name, entry in cell.first["results"].items():
                yield [
                    f"[`{cell.name}.yaml`](experiments/{cell.name}.yaml)",
                    f"{cell.steps_asked:,}",
                    f"{name}, {entry['shots']}-shot",
                    data.measured(cell, name, cell.report_step),
                ]

    return data.markdown(["template", "iterations", "meta-test", "accuracy"], rows())


def own_sets() -> str:
    """Ways to classify one's own images, on sets of experiments/own_sets.py; the best of each is bold."""

    def rows() -> Iterator[list[str]]:
        for path in sorted((data.RESULTS / "own_sets").glob("*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            best = {k: max(row["shots"][k]["mean"] for row in found["rows"]) for k in found["rows"][0]["shots"]}
            chance = data.interval("accuracy", found["chance"], None)
            yield [f"{found['set']}: {found['about']}", "chance", "", *[chance] * len(best), ""]
            for row in found["rows"]:
                values = [
                    ("**{}**" if abs(row["shots"][k]["mean"] - top) < EQUAL else "{}").format(
                        data.interval("accuracy", row["shots"][k]["mean"], row["shots"][k]["ci95"])
                    )
                    for k, top in best.items()
                ]
                yield ["", row["way"], str(row["iterations"] or ""), *values, f"{row['seconds']['cpu']:.0f}"]

    return data.markdown(["set", "way", "iterations", "1-shot", "5-shot", "CPU seconds"], rows())


def any_ways() -> str:
    """Checkpoints at other numbers of classes than they were trained for, by experiments/any_ways.py."""

    def rows() -> Iterator[list[str]]:
        for path in sorted((data.RESULTS / "any_ways").glob("*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            for row in found["rows"]:
                values = [
                    data.interval("accuracy", row["accuracy"][key]["mean"], row["accuracy"][key]["ci95"])
                    for key in ("transductive", "inductive")
                ]
                chance = data.interval("accuracy", 1 / row["ways"], None)
                yield [f"`{found['checkpoint']}`", str(row["ways"]), chance, *values, str(row["episodes"]), str(row["steps"])]

    return data.markdown(["checkpoint", "ways", "chance", "transductive", "inductive", "episodes", "inner steps"], rows())
