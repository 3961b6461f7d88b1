"""The tables of results: what was measured, beside what the papers published."""

import re
from collections.abc import Iterator

from tabled.data import Cell, cells, episodes, interval, length, markdown, measured, number


def finished() -> str:
    """Cells trained to their paper's length, with the paper's protocol and value."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            if cell.streamed:
                continue
            if cell.steps_asked == 0:  # nothing was trained: in `images` or `returns`
                continue
            metric, link = cell.first["metric"], f"[{cell.title}](experiments/{cell.name}.yaml)"
            for name, values in cell.published.items():
                if name not in cell.first["results"]:
                    continue
                ci95 = cell.published_ci95.get(name, {})
                steps = sorted(values)
                yield [
                    link + f", tested with K = {_shots(cell, name)}" * (metric != "accuracy"),
                    _iterations(cell),
                    " / ".join(map(str, steps)),
                    " / ".join(measured(cell, name, step) for step in steps),
                    " / ".join(interval(metric, values[step], ci95.get(step)) for step in steps),
                    str(len(cell.seeds)),
                ]  # fmt: skip

    return markdown(["experiment", "iterations", "inner steps", "measured here", "published", "seeds"], rows())


def _iterations(cell: Cell) -> str:
    """As many as were made; of a best checkpoint, as many as it has behind it too."""
    behind = sorted({record["steps_done"] for record in cell.seeds.values()})
    best = "" if behind == [cell.steps_asked] else f", best on meta-val at {' and '.join(f'{steps:,}' for steps in behind)}"
    return f"{cell.steps_asked:,}{best}"


def _shots(cell: Cell, name: str) -> int:
    return int(cell.first["results"][name]["shots"])


def begun() -> str:
    """Cells trained for less than their paper's length, or with other settings than its."""

    def rows() -> Iterator[list[str]]:
        for cell in cells():
            if cell.finished or cell.streamed or cell.first["metric"] == "return":  # a table of their own
                continue
            metric = cell.first["metric"]
            step = cell.report_step if _has(cell, cell.report_step) else _last(cell)
            names = list(cell.first["results"])
            yield [
                f"`{cell.name}`",
                f"**{length(cell)}**",
                str(step),
                *(measured(cell, name, step) for name in _pair(names, "paper")),
                *(measured(cell, name, step) for name in _pair(names, "standard")),
                interval(metric, cell.published.get("paper", {}).get(step), cell.published_ci95.get("paper", {}).get(step)),
                ", ".join(f"`{name}`" for name in cell.first["changed"] if name != "trainer.max_steps"),
            ]

    header = [
        "cell",
        "iterations done / asked",
        "inner steps",
        "paper",
        "paper, inductive",
        "standard",
        "standard, inductive",
        "published",
    ]
    return markdown(header, rows())


# sets of a test that are shown, in the reading of the paper or by the statistics of meta-train images
SHOWN = r"(paper|standard|within_alphabet|across_alphabets)(\[\d+\])?(/\d+-shot)?(\[\d+\])?(/population)?"


def _has(cell: Cell, step: int) -> bool:
    return all(step < len(e["mean"]) and e["mean"][step] is not None for e in cell.first["results"].values())


def _last(cell: Cell) -> int:
    return min(len(e["mean"]) for e in cell.first["results"].values()) - 1


def _pair(names: list[str], protocol: str) -> tuple[str, str]:
    """The set of a protocol, which may have a number of episodes of its own (`standard[400]`), and its inductive reading."""
    plain = next((name for name in names if re.fullmatch(rf"{protocol}(\[\d+\])?", name)), protocol)
    return plain, f"{plain}/inductive"


def images() -> str:
    """Finished cells of images, transductive and inductive, with both protocols."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            if cell.first["metric"] != "accuracy" or cell.streamed or cell.name.startswith("own_"):  # those in `templates`
                continue
            shown = [n for n in cell.first["results"] if re.fullmatch(SHOWN, n)]
            for name in sorted(shown, key=lambda n: n.startswith("standard")):
                steps = (0,) if cell.report_step == 0 else (1, cell.report_step)
                alone = name.endswith("/population")  # each image by itself, as in an inductive reading
                for step in dict.fromkeys(steps):
                    asked = re.sub(r"\[\d+\]|/population", "", name)
                    values, ci95 = cell.published.get(asked, {}), cell.published_ci95.get(asked, {})
                    yield [
                        f"`{cell.name}`" + f", {name.partition('/')[2]}" * ("/" in name),
                        ", ".join(map(str, cell.seeds)),
                        episodes(cell.first["results"][name], "accuracy"),
                        str(step),
                        "" if alone else measured(cell, name, step),
                        measured(cell, name if alone else f"{name}/inductive", step),
                        interval("accuracy", values.get(step), ci95.get(step)),
                        str(cell.first["commit"])[:7],
                    ]

    header = ["cell", "seed", "episodes", "inner steps", "transductive", "inductive", "published", "commit"]
    return markdown(header, rows())


def streams() -> str:
    """Methods with a memory: accuracy by presentation, and with a support that stays as it is."""
    shown = (0, 1, 2, 3, 4, 5, 9)

    def rows() -> Iterator[list[str]]:
        for cell in (cell for cell in cells() if cell.streamed):
            name = next(name for name, entry in cell.first["results"].items() if entry["protocol"].startswith("stream"))
            others = {n: entry for n, entry in cell.first["results"].items() if n != name}
            frozen = [f"{e['shots']}-shot {measured(cell, n, 0)} [{e['episodes']:,}]" for n, e in others.items()]
            streams = f"{cell.first['results'][name]['episodes']:,}"
            published = cell.published.get("stream", {})
            yield [f"`{cell.name}`", length(cell), streams, *(measured(cell, name, step) for step in shown), "; ".join(frozen)]
            yield ["published", "", "", *(interval("accuracy", published.get(step), None) for step in shown), ""]

    ordinals = [f"{step + 1}{ {0: 'st', 1: 'nd', 2: 'rd'}.get(step, 'th') }" for step in shown]
    return markdown(["cell", "iterations done / asked", "streams", *ordinals, "fixed support [episodes]"], rows())


def regression() -> str:
    """Finished cells of regression: mean and median error, by seed and by number of points."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            for seed, record in cell.seeds.items():
                if record["metric"] != "mse":
                    continue
                for entry in record["results"].values():
                    steps = (1, 2, 5, 10)
                    median = [entry.get("median", [None] * 11)[step] for step in (1, 5, 10)]
                    yield [
                        f"`{cell.name}`",
                        str(seed),
                        str(entry["shots"]),
                        episodes(entry, "mse"),
                        *(interval("mse", entry["mean"][step], entry["ci95"][step]) for step in steps),
                        " / ".join(number("mse", value) for value in median) if None not in median else "",
                    ]

    header = ["cell", "seed", "K", "tasks", "1 step", "2 steps", "5 steps", "10 steps", "median 1 / 5 / 10"]
    return markdown(header, rows())


def returns() -> str:
    """Reinforcement learning: returns after each gradient step by the paper's protocol, beside the published ones."""

    def rows() -> Iterator[list[str]]:
        for cell in cells():
            if cell.first["metric"] != "return":
                continue
            for name, entry in cell.first["results"].items():
                if entry["protocol"] != "paper":
                    continue
                steps = range(len(entry["mean"]))
                values, ci95 = cell.published.get(name, {}), cell.published_ci95.get(name, {})
                title = f"[{cell.title}](experiments/{cell.name}.yaml)"
                yield [title, length(cell), f"{entry['episodes']} x {entry['queries']}",
                       " / ".join(measured(cell, name, step) for step in steps),
                       " / ".join(interval("return", values.get(step), ci95.get(step)) or "?" for step in steps) * bool(values),
                       str(len(cell.seeds))]  # fmt: skip

    header = ["experiment", "iterations", "tasks x trajectories", "measured after 0 / 1 / 2 ... steps", "published", "seeds"]
    return markdown(header, rows())
