"""The table from files written by hand: every number in it worked out here."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from reproduction.cells import Cell
from reproduction.figure import draw, label
from reproduction.table import Row, collect, duration, markdown, paired, write_csv

DOCUMENT = {
    "trainer": {"max_steps": 60000, "val_check_interval": 1000, "default_root_dir": "runs/maml/omniglot_5way_1shot"},
    "model": {"init_args": {"report_step": 1}},
    "results": {"published": {"paper": {1: 0.6}}, "published_ci95": {"paper": {1: 0.1}}},
}
CELL = Cell("maml/omniglot_5way_1shot", "omniglot", Path("experiments/maml/omniglot_5way_1shot.yaml"), DOCUMENT)
# After one step, in four episodes. Inductive less transductive: -0.2, 0, -0.4, -0.2; mean -0.2, sample variance 0.08 / 3,
# so the interval is 1.96 * sqrt(0.08 / 3 / 4) = 0.16003.
TRANSDUCTIVE, INDUCTIVE = [0.8, 0.6, 0.8, 0.6], [0.6, 0.6, 0.4, 0.4]


def entry(mean: list, ci95: list, batch_norm: str | None = "transductive", split: str = "test") -> dict:
    return {"mean": mean, "ci95": ci95, "batch_norm": batch_norm, "split": split, "episodes": 4, "queries": 1}


def write(out: Path, folder: str = "last", rule: str = "last", cell: Cell = CELL, seed: int = 0, **changes: object) -> None:
    """An evaluation as reproduce.py leaves it."""
    path = out / "evaluations" / cell.name / f"seed_{seed}" / folder
    path.mkdir(parents=True)
    training = {"steps_asked": 60000, "seconds": 3725.4, "commit": "0123456789abcdef"}
    (path / "evaluated.json").write_text(json.dumps({"rule": rule, "seed": seed, "training": training}))
    results = {
        "val": entry([0.1, 0.2], [0.0, 0.0], split="val"),
        "paper": entry([0.2, 0.7], [0.05, 0.113]),
        "paper/inductive": entry([0.2, 0.5], [0.05, 0.113], "inductive"),
        "standard": entry([0.3, 0.65], [0.01, 0.02]),
        "standard/inductive": entry([0.3, 0.5], [0.01, 0.02], "inductive"),
    }
    result = {"metric": "accuracy", "steps_done": 8000, "results": results} | changes
    (path / "result.json").write_text(json.dumps(result))
    with (path / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "batch_norm", "episode", "steps", result["metric"]])
        for name in ("paper", "standard"):
            for norm, values in (("transductive", TRANSDUCTIVE), ("inductive", INDUCTIVE)):
                for episode, value in enumerate(values):
                    writer.writerows([[name, norm, episode, 0, 0.2], [name, norm, episode, 1, value]])


def row(**changes: object) -> Row:
    made = Row(
        "maml/a_5way", 0, "last", "paper, 600 x 1", 3, "accuracy", (0.95, 0.01), None, None, 0.96, 0.02, 10, 10, 5.0, "abc"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_rows_hold_what_was_measured_and_published(tmp_path: Path) -> None:
    write(tmp_path)
    paper, standard = collect([CELL], tmp_path)
    assert (paper.cell, paper.seed, paper.checkpoint, paper.episodes) == (CELL.name, 0, "last", "paper, 4 x 1")
    assert (paper.inner_steps, paper.metric) == (1, "accuracy")
    assert (paper.transductive, paper.inductive) == ((0.7, 0.113), (0.5, 0.113))
    assert paper.batch_norm_costs == pytest.approx((-0.2, 0.16003), abs=1e-5)
    assert (paper.published, paper.published_ci95) == (0.6, 0.1)
    assert paper.difference == pytest.approx(0.1)
    assert (paper.steps_done, paper.steps_asked, paper.seconds, paper.commit) == (8000, 60000, 3725.4, "0123456")
    assert standard.episodes == "standard, 4 x 1"
    assert (standard.published, standard.difference, standard.verdict) == (None, None, "")


def test_the_document_line_by_line(tmp_path: Path) -> None:
    write(tmp_path)
    lines = markdown(collect([CELL], tmp_path), "Title", ["a: absent"], ["do this"]).splitlines()
    assert lines[0] == "# Title"
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert lines[4] == (
        "| maml/omniglot_5way_1shot | 0, last | paper, 4 x 1 | 1 steps | 70.00 ± 11.30 | 50.00 ± 11.30 | -20.00 ± 16.00 "
        "| 60.00 ± 10.00 | +10.00 | within | 8,000 / 60,000 | 1 h 02 min | 0123456 |"
    )
    assert lines[5].split(" | ")[7:10] == ["", "", ""]  # nothing published under the standard protocol
    assert lines[-7:] == ["## Not in the table", "", "- a: absent", "", "## To finish", "", "    do this"]


def test_checkpoints_are_ordered_by_seed_the_last_first(tmp_path: Path) -> None:
    for seed, folder, rule in ((10, "last", "last"), (2, "best", "best"), (2, "last", "last"), (3, "last_best", "last = best")):
        write(tmp_path, folder, rule, seed=seed)
    order = [(row.seed, row.checkpoint) for row in collect([CELL], tmp_path) if row.published]
    assert order == [(2, "last"), (2, "best"), (3, "last = best"), (10, "last")]


def test_an_evaluation_without_its_record_is_not_finished_and_not_shown(tmp_path: Path) -> None:
    write(tmp_path)
    next(tmp_path.rglob("evaluated.json")).unlink()
    assert collect([CELL], tmp_path) == []


def test_a_network_without_batch_norm_has_one_value_and_several_published_steps_a_row_each(tmp_path: Path) -> None:
    published = {"published": {"paper": {0: 0.67, 1: 0.35}}}
    cell = Cell("maml/sine_10shot", "sine", Path("sine.yaml"), DOCUMENT | {"results": published})
    results = {"paper": entry([0.5, "inf"], [0.03, "nan"], None)}
    write(tmp_path, cell=cell, metric="mse", results=results)
    first, second = collect([cell], tmp_path)
    assert (first.inductive, first.batch_norm_costs) == (None, None)
    assert (first.inner_steps, second.inner_steps) == (0, 1)
    line = markdown([first, second], "").splitlines()[4].split(" | ")
    assert line[4:10] == ["0.500 ± 0.030", "", "", "0.670", "-0.170", "below"]  # by the measured interval: there is no other
    assert second.transductive[0] == float("inf")


@pytest.mark.parametrize(
    ("measured", "published_ci95", "verdict"),
    [(0.95, 0.02, "within"), (0.94, 0.02, "within"), (0.939, 0.02, "below"), (0.981, 0.02, "above"), (0.965, None, "within")],
)
def test_the_verdict_is_by_the_published_interval(measured: float, published_ci95: float | None, verdict: str) -> None:
    assert row(transductive=(measured, 0.01), published_ci95=published_ci95).verdict == verdict


def test_paired_differences_by_hand() -> None:
    """1, 3: mean 2, sample standard deviation sqrt 2, so 1.96 * sqrt 2 / sqrt 2."""
    assert paired({"0": 2.0, "1": 5.0}, {"1": 2.0, "0": 1.0}) == pytest.approx((2.0, 1.96))


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (0.4, "0 min 00 s"), (3599.4, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_csv_has_every_number_in_a_column_of_its_own(tmp_path: Path) -> None:
    write_csv([row(), row(inductive=(0.9, 0.02), batch_norm_costs=(-0.05, 0.001), seconds=None)], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        plain, both = csv.DictReader(file)
    assert (plain["transductive"], plain["transductive_ci95"], plain["inductive"]) == ("0.95", "0.01", "")
    assert (both["inductive"], both["inductive_ci95"]) == ("0.9", "0.02")
    assert (both["batch_norm_costs"], both["batch_norm_costs_ci95"], both["seconds"]) == ("-0.05", "0.001", "")
    assert (both["published"], both["published_ci95"], both["verdict"]) == ("0.96", "0.02", "within")
    assert float(both["difference"]) == pytest.approx(-0.01)
    assert None not in both


def test_the_figure_has_a_panel_per_metric_and_a_label_per_row() -> None:
    rows = [
        row(inductive=(0.9, 0.02), batch_norm_costs=(-0.05, 0.01)),
        row(cell="maml/sine", metric="mse", published_ci95=None),
        row(published=None, published_ci95=None),  # not shown beside others
    ]
    accuracy, mse = draw(rows, "title").axes
    assert [text.get_text() for text in accuracy.get_yticklabels()] == [label(rows[0])]
    assert [text.get_text() for text in mse.get_yticklabels()] == [label(rows[1])]
    assert (accuracy.get_xlabel(), mse.get_xlabel()) == ("accuracy", "mse")
    (alone,) = draw(rows[2:], "title").axes
    assert len(alone.get_yticklabels()) == 1
