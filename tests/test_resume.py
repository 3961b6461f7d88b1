"""A run that is killed with no warning and then resumed ends with exactly the weights of one that was left alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from mamllit import cli

REPOSITORY = Path(__file__).parents[1]
SINE = str(REPOSITORY / "experiments" / "maml" / "sine_10shot.yaml")
SMALL = str(REPOSITORY / "tests" / "small.yaml")
WORKERS = (0, 2)

pytestmark = [
    pytest.mark.slow,  # starts processes
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
]


def command(root: Path, workers: int, max_steps: int, *more: str) -> list[str]:
    return [
        "fit", "-c", SINE, "-c", SMALL, "--trainer.default_root_dir", str(root), "--trainer.max_steps", str(max_steps),
        "--data.num_workers", str(workers), "--test_after_fit", "false", *more,
    ]  # fmt: skip


def load(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def kill_when_under_way(process: subprocess.Popen, run: Path) -> None:
    """SIGKILL to all processes of the session once a checkpoint and logged metrics are on the disk."""
    deadline = time.monotonic() + 240
    try:
        while not all((run / part).exists() for part in ("checkpoints/last.ckpt", "csv/version_0/metrics.csv")):
            assert process.poll() is None, f"ended by itself with code {process.returncode}"
            assert time.monotonic() < deadline, "no checkpoint and metrics after 240 s"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two endless runs, without and with workers, killed and resumed; one uninterrupted run of the same length.

    `root` holds them as 0, 2 and whole; `killed_at` the step of the checkpoint that a resumption began with; `steps`
    the length; `csv` the first session's metrics.
    """
    root = tmp_path_factory.mktemp("resume")
    environment = dict(os.environ)
    processes = {
        workers: subprocess.Popen(
            [sys.executable, "-m", "mamllit.cli", *command(root / str(workers), workers, 10**6)],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for workers in WORKERS
    }
    try:
        for workers, process in processes.items():
            kill_when_under_way(process, root / str(workers) / "seed_0")
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    killed_at = {w: load(root / str(w) / "seed_0/checkpoints/last.ckpt")["global_step"] for w in WORKERS}
    first_csv = {w: (root / str(w) / "seed_0/csv/version_0/metrics.csv").read_bytes() for w in WORKERS}
    steps = max(killed_at.values()) + 7
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mamllit"])
        for workers in WORKERS:
            cli.run(command(root / str(workers), workers, steps, "--ckpt_path", "last"))
        cli.run(command(root / "whole", 0, steps))
    torch.set_num_threads(threads)
    return SimpleNamespace(root=root, killed_at=killed_at, steps=steps, csv=first_csv)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(runs: SimpleNamespace, workers: int) -> None:
    assert 0 < runs.killed_at[workers] < runs.steps
    resumed = load(runs.root / str(workers) / "seed_0/checkpoints/last.ckpt")
    whole = load(runs.root / "whole/seed_0/checkpoints/last.ckpt")
    assert resumed["global_step"] == whole["global_step"] == runs.steps
    assert list(resumed["state_dict"]) == list(whole["state_dict"])
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    (old,), (new,) = whole["optimizer_states"], resumed["optimizer_states"]
    assert old["param_groups"] == new["param_groups"]
    assert len(old["state"]) == len(whole["state_dict"])
    for number, state in old["state"].items():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert float(state["step"]) == runs.steps
        for name, value in state.items():
            assert torch.equal(new["state"][number][name], value), f"{name} of parameter {number}"


@pytest.mark.parametrize("workers", WORKERS)
def test_the_resumed_run_writes_into_the_same_directory_and_keeps_what_is_there(runs: SimpleNamespace, workers: int) -> None:
    root = runs.root / str(workers)
    assert [path.name for path in root.iterdir()] == ["seed_0"]
    first, second = (root / "seed_0/csv" / f"version_{session}" / "metrics.csv" for session in (0, 1))
    assert first.read_bytes() == runs.csv[workers]
    with second.open() as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["step"]) for row in rows if row["train/meta_loss"]]
    assert trained
    assert all(runs.killed_at[workers] <= step < runs.steps for step in trained)
    validated = [int(row["step"]) for row in rows if row["val/mse"]]  # beginning with the one that the checkpoint's step owed
    assert all(runs.killed_at[workers] - 1 <= step < runs.steps for step in validated)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_resumed_result_counts_both_sessions(runs: SimpleNamespace, workers: int) -> None:

    result = json.loads((runs.root / str(workers) / "seed_0/result.json").read_text())
    assert result["steps_done"] == runs.steps
    assert result["fit"]["steps_this_session"] == runs.steps - runs.killed_at[workers]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_written_config_repeats_the_run_from_its_beginning(runs: SimpleNamespace, workers: int) -> None:
    config = yaml.safe_load((runs.root / str(workers) / "seed_0/config.yaml").read_text())
    assert config["ckpt_path"] is None
    assert config["trainer"]["max_steps"] == runs.steps
