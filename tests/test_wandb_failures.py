"""Weights & Biases fails: its process is killed, its server is not there, or goes away. The run ends with all its results."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from wandb_server import Server

from mamllit.runs.wandb_file import contents

pytestmark = pytest.mark.slow  # starts processes

REPOSITORY = Path(__file__).parents[1]
# `mamllit fit`, with something that happens after step 7.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from mamllit import cli
from mamllit.callbacks import CleanStop

what, *arguments = sys.argv[1:]
sys.argv = ["mamllit"]
original = CleanStop.on_train_batch_end

def signal_core(number):
    mine = f"--pid\\0{os.getpid()}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"wandb-core" in words and mine in words:
            os.kill(int(process.name), number)
            print("sent to W&B's process:", number.name, flush=True)

def preempt():
    signal_core(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

def server_goes():
    print("end the server", flush=True)
    sys.stdin.readline()

def at_seven(self, trainer, *rest):
    if trainer.global_step == 7:
        {"kill": lambda: signal_core(signal.SIGKILL), "preempt": preempt, "server": server_goes, "nothing": int}[what]()
    original(self, trainer, *rest)

CleanStop.on_train_batch_end = at_seven
cli.run(arguments)
"""


def start(tmp_path: Path, what: str, mode: str, url: str = "", **more: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [
        "fit", "-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml"),
        "--wandb", mode, "--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    account = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40} if url else {}
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), what, *words],
        env={**inherited, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **account, **more},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def check(process: subprocess.Popen[str], printed: str, run: Path) -> None:
    """It has come to a good end, with every number in its files."""
    assert process.returncode == 0, printed
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    assert result["steps_done"] == 22
    assert set(result["results"]) == {"val", "paper[20]"}
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=False)["global_step"] == 22
    assert trained(run) == [4, 9, 14, 19]


def trained(run: Path) -> list[int]:
    """The steps whose loss is in the CSV file."""
    with (run / "csv/version_0/metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/meta_loss"]]


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for W&B's process in /proc")


@needs_proc
def test_the_trackers_process_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "kill", "offline")
    printed, _ = process.communicate(timeout=240)
    check(process, printed, tmp_path / "runs/seed_0")
    assert "sent to W&B's process: SIGKILL" in printed
    message = r"WandbLogger cannot log \(\w+: .*\); the run continues, and its result files are safe"
    assert re.search(message, printed), printed


@needs_proc
def test_a_preemption_that_reaches_the_trackers_process_loses_no_number(tmp_path: Path) -> None:
    """Slurm signals every process of a job, and W&B's ends at once, without what it had not yet written."""
    process = start(tmp_path, "preempt", "offline")
    printed, _ = process.communicate(timeout=240)
    run = tmp_path / "runs/seed_0"
    assert process.returncode == 143, printed
    assert "sent to W&B's process: SIGTERM" in printed
    assert "stopped by SIGTERM after step 7" in printed
    assert trained(run) == [4]
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=False)["global_step"] == 7


def test_a_server_that_cannot_be_reached_means_offline(tmp_path: Path) -> None:
    """Nothing listens on port 9 (discard). W&B waits for 90 s unless told otherwise."""
    process = start(tmp_path, "nothing", "online", "http://127.0.0.1:9", WANDB_INIT_TIMEOUT="3")
    printed, _ = process.communicate(timeout=240)
    run = tmp_path / "runs/seed_0"
    check(process, printed, run)
    assert "the W&B server cannot be reached (" in printed
    assert f"this run is logged offline to {run}/wandb; `wandb sync` uploads it later" in printed
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert any("test/results" in row for row in contents(file).history)
    assert contents(file).run.run_id == (run / "wandb_run_id").read_text()


@pytest.mark.slow
def test_a_server_that_goes_away_does_not_hold_the_run(tmp_path: Path) -> None:
    """W&B would wait for hours at the end; WANDB_FINISH_TIMEOUT, 600 s unless set, ends that."""
    with Server(most=0) as server:
        process = start(tmp_path, "server", "online", server.url, WANDB_FINISH_TIMEOUT="5")
        assert process.stdout is not None and process.stdin is not None
        before = ""
        while "end the server" not in before:
            line = process.stdout.readline()
            assert line, before
            before += line
    printed, _ = process.communicate("\n", timeout=300)
    run = tmp_path / "runs/seed_0"
    check(process, before + printed, run)
    assert "Timed out finishing run" in printed and "Use `wandb sync`" in printed
    (file,) = run.glob("wandb/run-*/run-*.wandb")
    assert any("test/paper[20]/mse_step1_mean" in row for row in contents(file).history)
