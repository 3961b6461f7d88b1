"""A policy whose training is killed with no warning and resumed ends with exactly the weights of one left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mamllit import cli

REPOSITORY = Path(__file__).parents[2]
SMALL = {
    "model.method.init_args.backbone.init_args.hidden": "[8]",
    "data.world.init_args.horizon": 8,
    "data.shots": 3,
    "data.queries": 3,
    "data.meta_batch_size": 2,
    "trainer.val_check_interval": 100,
    "checkpoint_last.every_n_train_steps": 2,
    "wandb": "disabled",
    "test_after_fit": "false",
}

pytestmark = [
    pytest.mark.slow,  # starts a process
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
]


def command(root: Path, max_steps: int, *more: str) -> list[str]:
    changes = {**SMALL, "trainer.default_root_dir": root, "trainer.max_steps": max_steps}
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    return ["fit", "-c", str(REPOSITORY / "experiments/rl/navigation_maml.yaml"), *words, *more]


def load(root: Path) -> dict[str, Any]:
    return torch.load(root / "seed_0/checkpoints/last.ckpt", weights_only=True)


def test_a_killed_and_resumed_policy_is_the_unbroken_one_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "mamllit.cli", *command(broken, 10**6)],
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 400
    try:
        while not (broken / "seed_0/checkpoints/last.ckpt").exists():
            assert process.poll() is None, f"ended by itself with code {process.returncode}"
            assert time.monotonic() < deadline, "no checkpoint after 400 s"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    killed_at = load(broken)["global_step"]
    assert killed_at > 0
    monkeypatch.setattr(sys, "argv", ["mamllit"])
    cli.run(command(broken, killed_at + 3, "--ckpt_path", "last"))
    cli.run(command(whole, killed_at + 3))
    resumed, unbroken = load(broken), load(whole)
    assert resumed["global_step"] == unbroken["global_step"] == killed_at + 3
    assert list(resumed["state_dict"]) == list(unbroken["state_dict"])
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
