"""The other end of a worker: starts the process, sends requests, and compares gradients before anything is timed."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suite.problems import Problem

ROOT = Path(__file__).parents[1]
CHECKED_TASKS = 2  # the gradient is a mean over tasks that know nothing of each other: two show as much as thirty-two
# in float32 a ReLU that rounding puts to its other side moves the gradient (6e-4 was seen); an error of method shows in float64
TOLERANCE = {"float64": 1e-6, "float32": 1e-2}


class Mismatch(Exception):
    """A competitor computes another meta-gradient than mamllit: its time would mean nothing."""


class Skipped(Exception):
    """A competitor that cannot take part, and why."""


class Process:
    """A running worker. `cache` is the folder of compiled code (default: the machine's, which may be warm)."""

    def __init__(self, name: str, threads: int, device: str, cache: str | None = None) -> None:
        self.name = name
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        warm = {} if cache is None else {"TORCHINDUCTOR_CACHE_DIR": cache}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "suite.worker", name, str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | variables | quiet | warm | {"PYTHONPATH": path},
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            Skipped: where the library is not there or cannot do the row.
            RuntimeError: where the worker failed or died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name}: the process died in {do!r}: {self._log.read()[-500:]}")
        answer = json.loads(line)
        if reason := answer.get("missing") or answer.get("unsupported"):
            raise Skipped(f"{self.name}: {reason}")
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {do!r} failed: {answer['error']}")
        return answer

    def build(self, row: Problem, dtype: str, tasks: int | None = None) -> None:
        self.ask("build", row=asdict(row), dtype=dtype, tasks=tasks)

    def gradient(self) -> tuple[dict[str, Tensor], float]:
        """The meta-gradient, and the seconds that it took."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/gradient.pt"
            answer = self.ask("gradient", path=path)
            return torch.load(path), answer["seconds"]

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()


def relative_error(gradient: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the reference, over all parameters at once, in float64.

    A parameter at a time would not do: a convolution's bias before a norm has a gradient of zero up to rounding.

    Raises:
        Mismatch: where the names differ.
    """
    if gradient.keys() != reference.keys():
        raise Mismatch(f"it has gradients for {sorted(gradient)}, the reference for {sorted(reference)}")
    a, b = (torch.cat([values[name].double().flatten() for name in reference]) for values in (gradient, reference))
    return float((a - b).norm() / b.norm())


def check(
    name: str, row: Problem, dtype: str, gradient: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float
) -> float:
    """The relative error of a competitor's meta-gradient, computed in `dtype`.

    Raises:
        Mismatch: where it is above `tolerance`, or not a number.
    """
    error = relative_error(gradient, reference)
    if not error <= tolerance:
        raise Mismatch(
            f"{name} on {row.name!r}: the meta-gradient differs from mamllit's by {error:.1e} ({dtype}, relative), more than "
            f"{tolerance:.0e}; nothing is timed. Make the peer compute the same thing first."
        )
    return error
