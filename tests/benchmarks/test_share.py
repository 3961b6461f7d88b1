"""experiments/benchmarks/suite/share.py: both loops take turns; no time is judged here."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from suite import cli, share  # noqa: E402


def test_both_take_turns_and_the_bare_loop_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    class Noting(share.Bare):
        def step(self) -> None:
            super().step()
            ends.append([float(value.detach().sum()) for value in self.trained])

    monkeypatch.setattr(share, "Bare", Noting)
    turns = share.measure(tmp_path, rounds=2, block=2, compiled="false", threads=1)
    assert len(turns.fit) == len(turns.bare) == 2
    assert all(value > 0 for value in turns.fit + turns.bare)
    assert len(ends) == 2 * (2 + share.WARM)
    assert ends[0] != ends[-1]


def test_the_command_prints_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--share", "--quick", "--threads", "1", "--rounds", "3", "--out", str(tmp_path)])
    text = (tmp_path / "share.md").read_text()
    assert text in capsys.readouterr().out
    assert "threads: 1, bare loop " in text
    assert "3 blocks of 2 steps each" in text


def test_the_share_is_of_the_bare_loop_s_speed() -> None:
    turns = share.Turns(5, fit=[0.004, 0.002, 0.002], bare=[0.001, 0.001, 0.0015])
    assert share.markdown(turns).startswith("bare loop 1 ms, mamllit fit 2 ms: 50.0% of its speed (middle half 25.0% to 75.0%)")
