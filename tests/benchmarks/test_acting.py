"""The benchmark of reinforcement learning runs; that both structures compute the same, it checks itself."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason='needs pip install "mamllit[rl]"')


def test_the_script_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "benchmarks"))
    import acting

    found = acting.main(["--quick", "--threads", "1"])
    assert {entry["what"] for entry in found if entry["world"] == "half-cheetah"} == {
        "acting, mamllit", "acting, task by task", "acting, floor",
        "iteration, mamllit, curvature 0.3", "iteration, mamllit, curvature 1", "iteration, task by task",
    }  # fmt: skip
    assert min(entry["steps"] for entry in found) > 0
    assert "gradients and products of the two structures agree in double precision" in capsys.readouterr().out
    monkeypatch.setattr(acting, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match=r"the gradients of the two structures differ in 2D navigation: relative error \d"):
        acting.check(acting.rows(1, 5, 2)[0], 3)
    sys.modules.pop("acting")
