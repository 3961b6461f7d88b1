"""One competitor in a process of its own, driven by JSON lines: `python -m suite.worker NAME THREADS DEVICE`.

A process each, because the libraries' thread pools disturb one another, and because peak memory is a process's. Requests
come on stdin, one answer each goes to stdout; whatever the libraries print goes to stderr.

    {"do": "build", "row": {...}, "dtype": "float32", "tasks": null}   -> {"seconds"}, or {"missing"} / {"unsupported"}
    {"do": "gradient", "path": P}      writes the meta-gradient to P   -> {"seconds"}, of the first call compiling
    {"do": "time", "steps": n}                                         -> {"seconds"} of all n
    {"do": "memory", "steps": n}                                       -> {"bytes"} that the steps needed at their peak
    {"do": "matmul", "side": n}       -> {"flops"} per second of the product of two n x n float32 matrices, the best of five
    {"do": "busy", "steps": n}        -> {"share"} of the steps' time in which the device computed, by torch.profiler
    {"do": "loop", "steps": n}        -> {"seconds"} of n steps on ever new sine tasks (else the built batch), drawing included
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any, TextIO


def pin(threads: int) -> None:
    """Confine the process to as many cores as it has threads: JAX takes a thread per core it may run on."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or not allowed: JAX may then use more
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def resident() -> int:
    """Bytes that the process holds now (Linux), else its peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak()


def peak() -> int:
    """Bytes that the process held at most since `reset_peak`, or since its start where the kernel cannot reset that."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Give freed memory back and forget the peak, as far as this system can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Worker:
    """Keeps one competitor built."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    def build(self, row: dict, dtype: str, tasks: int | None) -> dict[str, Any]:
        import torch

        from suite.peers import Unsupported, build
        from suite.problems import Problem, converted, episodes

        self.row = problem = Problem(**row)
        start = time.perf_counter()
        self.competitor: Any = None
        self.batch: Any = None
        gc.collect()
        try:
            self.competitor = build(self.name, problem, getattr(torch, dtype), self.device)
        except ImportError as error:
            return {"missing": f"{type(error).__name__}: {error}".splitlines()[0]}
        except Unsupported as error:
            return {"unsupported": str(error)}
        made = converted(episodes(problem, tasks), getattr(torch, dtype), self.device)
        self.batch = self.competitor.prepare(made)
        return {"seconds": time.perf_counter() - start}

    def gradient(self, path: str) -> dict[str, Any]:
        import torch

        start = time.perf_counter()
        values = self.competitor.gradient(self.batch)
        self.finish()
        seconds = time.perf_counter() - start
        torch.save({name: value.detach().cpu() for name, value in values.items()}, path)
        return {"seconds": seconds}

    def time(self, steps: int) -> dict[str, Any]:
        self.finish()
        start = time.perf_counter()
        for _ in range(steps):
            self.competitor.step(self.batch)
        self.finish()
        return {"seconds": time.perf_counter() - start}

    def memory(self, steps: int) -> dict[str, Any]:
        import torch

        self.time(1)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.time(steps)
            return {"bytes": torch.cuda.max_memory_allocated() - before}
        reset_peak()
        before = resident()
        self.time(steps)
        return {"bytes": max(peak() - before, 0)}

    def matmul(self, side: int) -> dict[str, Any]:
        import torch

        a, b = torch.rand(2, side, side, device=self.device)
        best = float("inf")
        for _ in range(6):
            self.finish()
            start = time.perf_counter()
            torch.mm(a, b)
            self.finish()
            best = min(best, time.perf_counter() - start)
        return {"flops": 2 * side**3 / best}

    def busy(self, steps: int) -> dict[str, Any]:
        from torch.profiler import ProfilerActivity, profile

        kind = ProfilerActivity.CUDA if self.device == "cuda" else ProfilerActivity.CPU
        self.time(1)
        with profile(activities=[kind]) as profiled:
            seconds = self.time(steps)["seconds"]
        events = profiled.key_averages()
        field = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        return {"share": sum(getattr(event, field) for event in events) / 1e6 / seconds}

    def loop(self, steps: int) -> dict[str, Any]:
        from suite.problems import sine_batches

        self.finish()
        start = time.perf_counter()
        if self.row.channels == 0:
            for batch in sine_batches(self.row, steps, self.device):
                self.competitor.step(self.competitor.prepare(batch))
        else:
            for _ in range(steps):
                self.competitor.step(self.batch)
        self.finish()
        return {"seconds": time.perf_counter() - start}

    def finish(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer request after request; an exception is an answer too."""
    for line in requests:
        request = json.loads(line)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answer = getattr(worker, request.pop("do"))(**request)
            failed = [str(w.message) for w in caught if "torch.compile failed" in str(w.message)]
            answer |= {"warning": failed[0]} if failed else {}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    name, threads, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if device == "cpu":
        pin(threads)
    warnings.filterwarnings("ignore", message="Gym has been unmaintained")
    import torch

    torch.set_num_threads(threads)
    serve(Worker(name, device), sys.stdin, answers)


if __name__ == "__main__":
    main()
