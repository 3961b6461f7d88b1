"""experiments/compare_uncertainty.py: numbers worked out by hand, the orders, and the command on a run made in a blink."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
import compare_uncertainty  # noqa: E402
from reproduction.calibrated import GRID, Judged, Trained, judge, markdown, tune, verdicts  # noqa: E402
from reproduction.cells import Cell, find_cells  # noqa: E402
from reproduction.comparison import Compared  # noqa: E402

from mamllit.backbones import MLP  # noqa: E402
from mamllit.data import SineLineDataModule  # noqa: E402
from mamllit.methods import MAML  # noqa: E402
from mamllit.objectives import Regression  # noqa: E402


def constant(value: float) -> MAML:
    """A method that predicts `value` everywhere and learns nothing."""
    method = MAML(MLP(1, [2], 1), Regression(), 0.0, 1, "mean")
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
        method.backbone.layers[1].bias.fill_(value)
    return method


def trained(value: float, noise_std: float = 0.3) -> Trained:
    data = SineLineDataModule(standard_queries=20, noise_std=noise_std, seed=0, val_episodes=40, test_episodes=30)
    return Trained(constant(value), data, 1, 70)


def test_the_numbers_are_those_of_a_gaussian_around_the_prediction() -> None:
    run = trained(0.0)
    judged, tuned = judge("maml", [run], 0.5, 30)
    y = run.data.episodes(run.data.evaluation_sets("test")[0]).episodes.query.y.double()
    nll = (y.square() / (2 * 0.25) + math.log(0.5 * math.sqrt(2 * math.pi))).mean((1, 2))
    torch.testing.assert_close(judged.nll, nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(judged.error, y.square().mean((1, 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(judged.covered, (y.abs() <= 1.6448536 * 0.5).double().mean((1, 2)))
    assert (judged.noise, judged.tuned, judged.steps_done, tuned.tuned) == (0.5, False, [70], True)
    assert tuned.nll.mean() < judged.nll.mean()  # the errors are of more than 0.5


def test_the_tuned_noise_is_the_best_of_the_grid_on_meta_val() -> None:
    """For a constant, the root of the mean squared error, up to the grid."""
    run = trained(0.0)
    (evaluation,) = run.data.evaluation_sets("val")
    root = float(run.data.episodes(evaluation).episodes.query.y.square().mean().sqrt())
    assert GRID[0] < root < GRID[-1]
    assert max(tune(run, 40) / root, root / tune(run, 40)) <= 2**0.25 + 0.01


def test_seeds_are_averaged_task_by_task() -> None:
    one, other, both = (judge("a", runs, 0.3, 30)[0] for runs in ([trained(0.0)], [trained(1.0)], [trained(0.0), trained(1.0)]))
    torch.testing.assert_close(both.nll, (one.nll + other.nll) / 2)
    assert both.seeds == 2


def judged(name: str, nll: float, covered: float, tuned: bool = False) -> Judged:
    torch.manual_seed(0)
    return Judged(name, 1, [9], 0.3, tuned, nll + 0.01 * torch.randn(50).double(), torch.full((50,), covered), torch.ones(50))


@pytest.mark.parametrize(
    ("nll", "covered", "word"),
    [(1.0, 0.88, "holds"), (1.0, 0.95, "holds"), (1.0, 0.6, "does not hold"), (3.0, 0.9, "does not hold")],
)
def test_better_calibrated_is_a_smaller_nll_and_a_nearer_coverage(nll: float, covered: float, word: str) -> None:
    first, second = verdicts("t", [judged("maml", 2.0, 0.7), judged("bmaml", nll, covered)], "maml", ["bmaml"])
    assert (first.word, second.word) == (word, "not measured")  # nothing was tuned
    assert f"NLL {nll - 2:+.3f} ± 0.000; {100 * covered:.1f}% and 70.0% in the 90% interval" == first.numbers


def test_the_table_line_by_line() -> None:
    last = markdown([judged("maml", 2.0, 0.7, tuned=True)]).splitlines()[-1]
    assert last.startswith("| maml | 1 | 9 | 50 | 1.000 ± 0.000 | 0.3, tuned | 2.00 ± 0.00 | 2.00 | 70.0 ± 0.0% |")


def test_all_four_methods_are_on_both_families_of_tasks() -> None:
    for table in ("sine_line", "frequency_sine"):
        cells = find_cells(REPOSITORY / "experiments", table)
        names = {Compared(cell, []).name for cell in cells}
        assert {compare_uncertainty.BASE, *compare_uncertainty.BETTER, "llama"} <= names


def test_the_command_tables_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def run(cell: Cell, seed: int, options: Any) -> Path:
        asked.append((cell.name, seed))
        if seed == 1:
            raise compare_uncertainty.Failed("it broke")
        folder = options.run_root(cell) / "seed_0"
        (folder / "checkpoints").mkdir(parents=True)
        results = {"standard": {"split": "test", "mean": [1.0] * 11}}
        (folder / "result.json").write_text(json.dumps({"results": results}))
        method = dict(cell.document["model"]["init_args"]["method"])
        method["init_args"] = method["init_args"] | {"objective": {"class_path": "mamllit.objectives.Regression"}}
        document = {"model": {"method": method, "report_step": 5}, "data": cell.document["data"]}
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        weights = MAML(MLP(1, [40, 40], 1), Regression(), 0.001, 5, "mean").state_dict()
        state = {f"method.{name}": value for name, value in weights.items()}
        torch.save({"global_step": 7, "state_dict": state}, folder / "checkpoints/last.ckpt")
        (folder / "episodes.csv").touch()
        return folder

    monkeypatch.setattr(compare_uncertainty, "finish", run)
    words = ["--tables", "sine_line", "--cells", "maml/*", "--steps", "7", "--seeds", "0", "1", "--tasks", "5"]
    assert compare_uncertainty.main([*words, "--out", str(tmp_path / "out"), "--runs", str(tmp_path)]) == 1
    assert asked == [("maml/sine_line_5shot", 0), ("maml/sine_line_5shot", 1)]
    text = (tmp_path / "out/uncertainty.md").read_text()
    assert text in capsys.readouterr().out
    assert "| maml | 1 | 7 | 5 |" in text
    assert "- maml/sine_line_5shot, seed 1: it broke" in text
    assert text.count("- **not measured**: sine_line: ") == 6  # three methods, two noises
    assert (tmp_path / "maml/sine_line_5shot/seed_0/figures/samples.png").exists()


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--steps", "0"], "--steps is 0; it must be >= 1"),
        (["--tasks", "0"], "--tasks is 0; it must be >= 1"),
    ):
        with pytest.raises(SystemExit):
            compare_uncertainty.parse(words)
        assert message in capsys.readouterr().err
    assert compare_uncertainty.main(["--cells", "mamml"]) == 2
    assert "no cell of the table 'all' matches 'mamml'" in capsys.readouterr().err
