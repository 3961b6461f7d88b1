"""Training steps in turns in one process: seconds of the clock and of the CPU, and how many times those of the first one."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

KINDS = ("clock", "cpu")
RATIOS = [f"{kind}_ratio_{which}" for kind in KINDS for which in ("median", "min", "max")]


class Turns(NamedTuple):
    """`steps` of each turn; seconds of each one's `first` step, by the clock; round -> competitor -> seconds of a step."""

    steps: int
    first: list[float]
    rounds: list[list[tuple[float, float]]]

    def median(self, place: int, kind: str) -> float:
        """Seconds of a step of the competitor in this place."""
        return statistics.median(each[place][KINDS.index(kind)] for each in self.rounds)

    def ratios(self, place: int) -> dict[str, float]:
        """Its seconds over those of the first competitor in the same round, by the names in RATIOS."""
        found = {}
        for i, kind in enumerate(KINDS):
            ratios = [each[place][i] / each[0][i] for each in self.rounds]
            values = zip(("median", "min", "max"), (statistics.median(ratios), min(ratios), max(ratios)), strict=True)
            found.update({f"{kind}_ratio_{which}": value for which, value in values})
        return found


def turn(step: Callable[[Any], Any], batch: Any, steps: int) -> tuple[float, float]:
    """Seconds of a step by the clock, and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step(batch)
    return (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps


def alternate(team: Sequence[Callable[[Any], Any]], batch: Any, rounds: int, seconds: float) -> Turns:
    """Each competitor's turn of about so many seconds, at least one step, then every one's again."""
    first = [turn(step, batch, 1)[0] for step in team]
    once = min(max(turn(step, batch, 2)[0] for step in team), seconds)
    steps = max(1, round(seconds / once))
    return Turns(steps, first, [[turn(step, batch, steps) for step in team] for _ in range(rounds)])
