"""experiments/benchmarks/methods.py: which methods, that it is they that are timed, and the table; no time is judged here."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import methods  # noqa: E402
from suite import costs, problems  # noqa: E402
from suite.peers import build  # noqa: E402

EXPERIMENTS = BENCHMARKS.parent
SINE = problems.quick(problems.ROWS["sine"])


def names(row: str, *patterns: str) -> list[str]:
    return [costs.name_of(path) for path in costs.cells(row, patterns)]


def test_every_method_is_there_but_what_the_row_does_not_fit() -> None:
    sine, images = names("sine"), names("omniglot-5w1s-1q")
    assert {"maml/sine_10shot", "mt_net/sine_10shot_t_net", "multi_task/sine_10shot_l2"} <= set(sine)
    assert "joint_training/sine_10shot_oracle" not in sine
    assert {"maml/omniglot_5way_1shot", "reptile/omniglot_5way_1shot"} <= set(images)
    assert "maml/omniglot_5way_1shot_mlp" not in images
    compared = {"nearest_neighbour", "prototypical", "matching", "siamese", "fine_tuning"}  # no inner steps, or no training
    assert not compared & {name.partition("/")[0] for row in costs.FILES for name in names(row)}
    assert all(base in names(row) for row, base in costs.BASE.items())
    assert "maml/mini_imagenet_5way_1shot_first_order" in names("mini-1s")
    assert names("sine", "mt_net/*") == ["mt_net/sine_10shot", "mt_net/sine_10shot_t_net"]


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there are no methods for the row 'mini-5s'; there are sine, omniglot-5w1s-1q"):
        costs.cells("mini-5s")
    with pytest.raises(ValueError, match=r"no cell of 'sine' matches 'mamml'; there are anil/sine_10shot, "):
        costs.cells("sine", ["mamml"])


def test_maml_of_the_yaml_has_the_meta_gradient_of_the_suite_s() -> None:
    path = str(EXPERIMENTS / "maml/sine_10shot.yaml")
    batch = problems.converted(problems.episodes(SINE), torch.float64, "cpu")
    own = build(path, SINE, torch.float64, "cpu")
    own.meta_gradient.compiled = False
    gradient = {name.removeprefix("method.backbone."): value for name, value in own.gradient(batch).items()}
    torch.testing.assert_close(gradient, build("mamllit-eager", SINE, torch.float64, "cpu").gradient(batch))
    before = [value.clone() for value in own.trained]
    own.step(batch)
    assert not any(torch.equal(a, b) for a, b in zip(before, own.trained, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "cell", "head"),
    [
        ("sine", "sine_10shot", "sine 10-shot, 25 tasks: 3 tasks, 10 support and 2 query examples each"),
        ("omniglot-5w1s-1q", "omniglot_5way_1shot", "1 query: 3 tasks, 5 support and 5 query examples each"),
    ],
)
def test_the_command_times_each_method_beside_maml(
    row: str, cell: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of runs too short to be compiled for; images have the size that the experiments' networks are made for."""
    for name in (f"maml/{cell}.yaml", f"meta_sgd/{cell}.yaml"):
        (tmp_path / name).parent.mkdir()
        text = (EXPERIMENTS / name).read_text()
        (tmp_path / name).write_text(re.sub(r"max_steps: \d+", "max_steps: 9", text))
    monkeypatch.setattr(costs, "EXPERIMENTS", tmp_path)
    methods.main(["--rows", row, "--quick", "--rounds", "2", "--seconds", "0.01", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/methods.md").read_text()
    assert text in capsys.readouterr().out
    assert head in text
    with (tmp_path / "out/methods.csv").open(newline="") as file:
        maml, meta_sgd = csv.DictReader(file)
    assert (maml["experiment"], meta_sgd["experiment"]) == (f"maml/{cell}", f"meta_sgd/{cell}")
    assert maml["over_maml"] == "1.0 1.0"
    assert len(meta_sgd["over_maml"].split()) == len(meta_sgd["seconds"].split()) == 2
    assert all(float(value) > 0 for value in meta_sgd["seconds"].split())
