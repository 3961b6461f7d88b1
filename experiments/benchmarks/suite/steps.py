"""Times one row: gradients compared, everybody warmed up, then alternating rounds."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from suite.driver import CHECKED_TASKS, TOLERANCE, Process, Skipped, check, relative_error
from suite.problems import Problem

REFERENCE = "mamllit-eager"


@dataclass
class Measured:
    """One competitor on one row: `rounds` holds seconds per step."""

    name: str
    row: Problem
    threads: int
    device: str
    once: float = float("nan")  # seconds of a step before the rounds
    compile_seconds: float = float("nan")
    error64: float = float("nan")
    error32: float = float("nan")
    rounds: list[float] = field(default_factory=list)
    peak_bytes: float = float("nan")
    busy_share: float = float("nan")

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def ratios(measured: Measured, base: Measured) -> list[float]:
    """How many times as long as `base` it took, round by round."""
    return [a / b for a, b in zip(measured.rounds, base.rounds, strict=True)]


class Team:
    """The workers of one number of threads, started when first asked for and kept."""

    def __init__(self, threads: int, device: str) -> None:
        self.threads, self.device = threads, device
        self._cache = tempfile.TemporaryDirectory()  # compiled code: cold at first, and shared with `measure_memory`
        self._processes: dict[str, Process] = {}

    def process(self, name: str) -> Process:
        if name not in self._processes:
            self._processes[name] = self.fresh(name)
        return self._processes[name]

    def fresh(self, name: str) -> Process:
        """A worker of its own, which the caller closes."""
        return Process(name, self.threads, self.device, self._cache.name)

    def close(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        self._cache.cleanup()


def ready(row: Problem, names: list[str], team: Team, say: Callable[[str], None]) -> list[Measured]:
    """Build and warm up every competitor that can take part, after its gradient was compared.

    Both against mamllit's plain float64 gradient of a few tasks: first the float64 gradient, which has to agree, then the
    float32 gradient, which has to be about as near as mamllit's own. (Over five inner steps of 20-way Omniglot rounding grows
    to a tenth of the gradient, whoever computes it.) Whoever has no library or no such option is left out with a word.

    Raises:
        Mismatch: for a wrong gradient.
    """
    few = min(row.tasks, CHECKED_TASKS if row.side < 84 else 1)  # large images take minutes in float64
    reference = team.process(REFERENCE)
    reference.build(row, "float64", few)
    exact, _ = reference.gradient()
    reference.build(row, "float32", few)
    own = relative_error(reference.gradient()[0], exact)
    there = []
    for name in names:
        process, entry = team.process(name), Measured(name, row, team.threads, team.device)
        try:
            process.build(row, "float64", few)
            entry.error64 = check(name, row, "float64", process.gradient()[0], exact, TOLERANCE["float64"])
            process.build(row, "float32", few)
            entry.error32 = check(name, row, "float32", process.gradient()[0], exact, max(TOLERANCE["float32"], 4 * own))
            process.build(row, "float32")
            _, seconds = process.gradient()
        except Skipped as reason:
            say(f"  {reason}: skipped")
            continue
        first = seconds + process.ask("time", steps=1)["seconds"]
        entry.once = process.ask("time", steps=1)["seconds"]
        entry.compile_seconds = max(first - 2 * entry.once, 0.0)
        say(
            f"  {name}: gradient off by {entry.error64:.1e} (float64), {entry.error32:.1e} (float32); compiled in "
            f"{entry.compile_seconds:.1f} s, a step {entry.once:.3g} s"
        )
        there.append(entry)
    return there


def time_rounds(entries: list[Measured], team: Team, rounds: int, budget: float = 0.5) -> None:
    """Alternate the competitors `rounds` times; each turn lasts about `budget` seconds, and at least one step."""
    steps = {entry.name: max(1, round(budget / max(entry.once, 1e-5))) for entry in entries}
    for _ in range(rounds):
        for entry in entries:
            time.sleep(0.2)  # the others' threads have stopped spinning by then
            answer = team.process(entry.name).ask("time", steps=steps[entry.name])
            entry.rounds.append(answer["seconds"] / steps[entry.name])


def measure_memory(entry: Measured, team: Team) -> None:
    """Peak memory of a step beyond what the built competitor holds, in a fresh process."""
    process = team.fresh(entry.name)
    try:
        process.build(entry.row, "float32")
        entry.peak_bytes = process.ask("memory", steps=2)["bytes"]
    finally:
        process.close()


def measure_busy(entry: Measured, team: Team) -> None:
    """The share of a step's time in which the GPU runs a kernel; PyTorch's competitors on CUDA only."""
    if entry.device == "cuda":
        entry.busy_share = team.process(entry.name).ask("busy", steps=20)["share"]
