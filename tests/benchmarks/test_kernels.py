"""experiments/benchmarks/kernels.py: whatever is left out, the step is the same; no time is judged here."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import kernels
from suite import problems

from mamllit.backbones import fast
from mamllit.engine.meta_gradient import MetaGradient


@pytest.mark.parametrize("row", ["omniglot-5w1s-1q", "mini-1s"])
def test_the_gradient_is_the_same_without_any_of_them(row: str) -> None:
    problem, before = problems.quick(problems.ROWS[row]), vars(fast).copy()
    batch = problems.converted(problems.episodes(problem), torch.float64, "cpu")
    gradients = {}
    for left_out in kernels.LEFT_OUT:
        with kernels.without(left_out):
            step = MetaGradient(problems.method(problem, problems.network(problem).double()))(batch)
        gradients[left_out] = torch.cat([value.flatten() for value in step.gradient.values()])
        assert vars(fast) == before
    for left_out, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients["nothing"], rtol=1e-8, atol=1e-8, msg=left_out)


def test_every_choice_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = problems.quick(problems.ROWS["mini-1s"])
    monkeypatch.setitem(kernels.ROWS, "mini-1s", tiny)
    monkeypatch.setattr(kernels, "MetaGradient", lambda method, compiled: MetaGradient(method))
    kernels.main(["--rows", "mini-1s", "--rounds", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == list(kernels.LEFT_OUT)
    assert float(rows[0].split("|")[4]) == 1 and all(float(row.split("|")[3]) > 0 for row in rows)
