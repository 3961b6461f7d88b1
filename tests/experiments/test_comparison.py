"""experiments/compare.py from files written by hand: which runs count, the numbers of the table, and the orders."""

import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
import compare  # noqa: E402
from reproduction import comparison  # noqa: E402
from reproduction.cells import Cell, find_cells  # noqa: E402
from reproduction.comparison import (  # noqa: E402
    Compared,
    Run,
    asked_steps,
    collect,
    eval_steps,
    finish,
    interval,
    summarise,
    was_tested,
)
from reproduction.comparison_figure import draw  # noqa: E402
from reproduction.comparison_table import markdown, write_csv  # noqa: E402
from reproduction.orders import SINE, Order, judge  # noqa: E402
from reproduction.work import Failed, Options  # noqa: E402

EXPERIMENTS = REPOSITORY / "experiments"
CELLS = {cell.name: cell for cell in find_cells(EXPERIMENTS, "sine")}
MAML, ORACLE = CELLS["maml/sine_10shot"], CELLS["joint_training/sine_10shot_oracle"]


def leave_run(folder: Path, steps_done: int, errors: list[list[float]], shots: int = 10) -> Path:
    """A run directory as `mamllit fit` leaves it; errors[episode][steps]."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": steps_done}, folder / "checkpoints" / "last.ckpt")
    mean = [sum(column) / len(column) for column in zip(*errors, strict=True)]
    entry = {"split": "test", "mean": mean}
    result = {"metric": "mse", "results": {f"standard/{shots}-shot": entry}, "fit": {"seconds": 62.0, "commit": "0123456789"}}
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "batch_norm", "episode", "steps", "mse"])
        for episode, values in enumerate(errors):
            writer.writerows([f"standard/{shots}-shot", "none", episode, s, value] for s, value in enumerate(values))
    return folder


def compared(cell: Cell, *seeds: torch.Tensor) -> Compared:
    """Seeds' errors [episodes, steps + 1], the same for every number of shots."""
    names = [f"standard/{shots}-shot" for shots in (5, 10, 20)]
    runs = [Run(i, dict.fromkeys(names, errors.double()), 70000, 62.0, "abc") for i, errors in enumerate(seeds)]
    return Compared(cell, runs)


# ---- which runs count ------------------------------------------------------------------------------------------------


def test_every_method_is_tested_after_ten_steps_or_its_own_number_and_an_oracle_after_none() -> None:
    assert {name: eval_steps(cell) for name, cell in CELLS.items() if eval_steps(cell) != 10} == {
        "joint_training/sine_10shot_oracle": 0, "imaml/sine_10shot": 32, "reptile/sine_10shot": 32,
    }  # fmt: skip
    assert eval_steps(CELLS["meta_sgd/sine_10shot"]) == 10


def test_names_are_those_of_the_files() -> None:
    named = {name: Compared(cell, []).name for name, cell in CELLS.items()}
    assert named["maml/sine_10shot"] == "maml"
    assert named["maml/sine_10shot_first_order"] == "maml, first order"
    assert len(set(named.values())) == len(named)


def test_a_run_counts_when_it_is_long_enough_and_tested_after_its_last_checkpoint(tmp_path: Path) -> None:
    folder = leave_run(tmp_path / MAML.name / "seed_0", 300, [[1.0] * 11, [3.0] * 11])
    options = Options(tmp_path, 300, runs=tmp_path)
    ((run,),) = [row.runs for row in collect([MAML], [0, 1], options)]
    assert (run.seed, run.steps_done, run.seconds, run.commit) == (0, 300, 62.0, "0123456")
    assert run.values["standard/10-shot"].tolist() == [[1.0] * 11, [3.0] * 11]
    assert collect([MAML], [0], Options(tmp_path, 301, runs=tmp_path))[0].runs == []
    assert not was_tested(folder, 11)
    os.utime(folder / "episodes.csv", (1, 1))
    assert not was_tested(folder, 10)
    assert collect([MAML], [0], options)[0].runs == []


def test_nothing_is_trained_for_longer_than_its_own_experiment_says() -> None:
    few = CELLS["multi_task/sine_10shot"]
    assert [asked_steps(cell, Options(Path(), 300)) for cell in (MAML, few)] == [300, 10]
    assert asked_steps(MAML, Options(Path())) == 70000


def test_what_is_missing_is_done_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, commands = Options(tmp_path, 300, runs=tmp_path), []

    def fit(cell: Cell, seed: int, wanted: Options, test: bool) -> Path:
        commands.append(("train", seed, test, list(wanted.more)))
        return tmp_path / cell.name / f"seed_{seed}"

    monkeypatch.setattr(comparison, "train", fit)
    monkeypatch.setattr(comparison, "mamllit", lambda *words: commands.append(words))
    leave_run(tmp_path / MAML.name / "seed_0", 300, [[1.0] * 11])
    finish(MAML, 0, options)
    finish(MAML, 1, options)
    more = ["--model.eval_steps", "10", "--wandb", "disabled"]
    assert commands[:2] == [("train", 0, True, more), ("train", 1, True, more)]
    (test,) = commands[2:]
    assert test[0] == "test"
    assert test[test.index("--ckpt_path") + 1] == tmp_path / MAML.name / "seed_1/checkpoints/last.ckpt"


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_the_interval_is_over_episodes_of_the_mean_over_seeds() -> None:
    # per episode (1 + 3) / 2 = 2 and (5 + 7) / 2 = 6: mean 4, standard deviation sqrt(8), over sqrt(2): 1.96 * 2
    s = summarise(torch.tensor([[1.0, 5.0], [3.0, 7.0]], dtype=torch.float64), 6.0)
    assert (s.mean, s.ci95) == (4.0, pytest.approx(1.96 * 2))
    assert s.seeds == [3.0, 5.0]
    assert (s.median, s.diverged) == (3.0, 0.25)


def test_what_is_no_number_has_diverged_and_is_no_median() -> None:
    s = summarise(torch.tensor([[1.0, math.nan, 2.0, math.inf]], dtype=torch.float64), 100.0)
    assert (s.median, s.diverged) == (2.0, 0.5)
    assert math.isnan(s.mean)


def test_the_table_line_by_line(tmp_path: Path) -> None:
    errors = torch.arange(11.0).expand(4, 11)
    rows = [
        compared(MAML, errors, errors + 1),
        compared(ORACLE, torch.full((4, 1), 0.01)),
        Compared(CELLS["anil/sine_10shot"], []),
    ]
    lines = markdown(rows).splitlines()
    heads = [line for line in lines if line.startswith("| method")]
    assert len(heads) == 3  # one per number of shots; nothing is published for the standard protocol
    assert lines[lines.index(heads[0]) + 2] == (
        "| maml | 1.500 ± 0.000 (1.000 to 2.000) | 5.500 ± 0.000 (5.000 to 6.000) | 10.500 ± 0.000 (10.000 to 11.000) |  "
        "| 1.000 / 5.000 / 10.000 | 0.00% / 0.00% / 0.00% | 0, 1 | 70,000 / 70,000 | 1 min 02 s |"
    )
    assert lines[lines.index(heads[0]) + 3] == (
        "| joint_training, oracle | - | - | - | 0: 0.010 ± 0.000 | - / - / - | - / - / - | 0 | 70,000 / 70,000 | 1 min 02 s |"
    )
    assert "anil" not in "\n".join(lines)
    write_csv(rows, tmp_path / "sine.csv")
    with (tmp_path / "sine.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert len(records) == 3 * (11 + 1)
    assert (records[1]["mean"], records[1]["seed_means"]) == ("1.5", "1.0 2.0")


def test_a_published_cell_stands_beside_the_papers_protocol() -> None:
    run = Run(
        0, {"standard/5-shot": torch.ones(4, 11).double(), "paper/5-shot": torch.full((4, 11), 0.6).double()}, 9, 1.0, "a"
    )
    lines = markdown([Compared(MAML, [run])]).splitlines()
    assert lines[-3] == "| maml | paper/5-shot | 1 | 0.600 ± 0.000 | 0.67 | 9 / 70,000 |"


def test_an_order_holds_at_every_number_of_shots_or_not_at_all() -> None:
    low, high = torch.full((50, 11), 1.0), torch.full((50, 11), 2.5) + 0.1 * torch.randn(50, 11)
    rows = {"a": compared(MAML, low), "b": compared(MAML, high)}
    assert judge(Order("a below b", "a", "b"), rows).word == "holds"
    assert judge(Order("a far below b", "a", "b", 2), rows).word == "holds"
    verdict = judge(Order("a very far below b", "a", "b", 3), rows)
    assert verdict.word == "does not hold"
    assert "K = 5: 3 x 1.000 - 2." in verdict.numbers
    assert judge(Order("a below c", "a", "c"), rows).word == "not measured"
    rows["b"].runs[0].values["standard/20-shot"] = low.double()
    assert judge(Order("a below b", "a", "b"), rows).word == "does not hold"
    assert interval(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.96))


def test_an_order_says_where_the_trainings_differ() -> None:
    row = compared(MAML, torch.ones(5, 11))
    longer = Compared(MAML, [Run(0, row.runs[0].values, 80, 1.0, "a")])
    assert "([70000] iterations and 1 seeds against [80] and 1)" in judge(Order("", "a", "b"), {"a": row, "b": longer}).numbers


def test_the_orders_are_of_cells_that_there_are() -> None:
    assert {name for order in SINE for name in (order.lower, order.upper)} <= set(CELLS)


def test_the_figure_has_a_panel_per_measured_method() -> None:
    errors = torch.full((4, 11), 0.1)
    errors[:, 2:] = math.inf  # a method that diverges leaves its panel
    figure = draw([compared(MAML, errors), compared(ORACLE, errors[:, :1]), Compared(CELLS["anil/sine_10shot"], [])], "t")
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes if axes.get_visible()]
    assert titles == ["maml", "joint_training, oracle"]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_all_methods_of_one_seed_come_before_the_next_and_a_failure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []

    def run(cell: Cell, seed: int, options: Options) -> Path:
        done.append((cell.path.stem, seed))
        if "first" in cell.name:
            raise Failed("it broke")
        return leave_run(options.run_root(cell) / f"seed_{seed}", 7, [[1.0] * 11, [2.0] * 11])

    monkeypatch.setattr(compare, "finish", run)
    words = ["--cells", "maml/sine_10shot", "sine_10shot_first*", "--steps", "7", "--seeds", "0", "4"]
    assert compare.main([*words, "--out", str(tmp_path / "out"), "--runs", str(tmp_path)]) == 1
    assert done == [(name, seed) for seed in (0, 4) for name in ("sine_10shot", "sine_10shot_first_order")]
    text = (tmp_path / "out/sine.md").read_text()
    assert text in capsys.readouterr().out
    assert "- maml/sine_10shot_first_order, seed 4: it broke" in text
    assert "| 0, 4 | 7 / 70,000 | 1 min 02 s |" in text
    assert "- **not measured**: Meta-SGD below MAML after one step" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sine.md", "sine.csv", "sine.png"}


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parse(["--steps", "0"])
    assert "--steps is 0; it must be >= 1" in capsys.readouterr().err
    assert compare.main(["--cells", "mamml"]) == 2
    assert "no cell of the table 'sine' matches 'mamml'" in capsys.readouterr().err
    assert compare.parse(["--", "--threads", "1"]).more == ["--threads", "1"]
