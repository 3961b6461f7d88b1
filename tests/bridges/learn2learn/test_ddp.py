"""A learn2learn algorithm on a learn2learn task set, through the command line, in one process and in two: the same weights."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow  # starts processes

pytest.importorskip("learn2learn", reason="learn2learn is not installed (tests/requirements-oracle.txt)")

REPOSITORY = Path(__file__).parents[3]
TASKSETS = """
from toy_images import ToyImages

from mamllit.bridges.learn2learn import TasksetDataModule, pool_tasksets


class ToyTasksets(TasksetDataModule):
    def __init__(self) -> None:
        super().__init__(lambda: pool_tasksets(ToyImages().load(), 3, 3, 3), 3, 1, 2, 4, val_episodes=4, test_episodes=5)
"""


def cell() -> dict[str, Any]:
    """One meta-update with plain SGD, whose step is the gradient."""
    bridge = "mamllit.bridges.learn2learn"
    network = {"class_path": "mamllit.backbones.MLP", "init_args": {"in_features": 64, "hidden": [8], "out_features": 3}}
    algorithm = {"class_path": f"{bridge}.meta_curvature", "init_args": {"backbone": network, "inner_lr": 0.1}}
    method = {"algorithm": algorithm, "objective": "mamllit.objectives.Classification", "inner_steps": 2}
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "val_check_interval": 1,
            "logger": [{"class_path": "WandbLogger", "init_args": {"project": "mamllit", "group": "learn2learn/toy"}}],
        },
        "model": {
            "method": {"class_path": f"{bridge}.Learn2Learn", "init_args": method},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "eval_steps": 2,
            "log_every": 1,
        },
        "data": {"class_path": "toy_tasksets.ToyTasksets"},
    }


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(cell()))
    (tmp_path / "toy_tasksets.py").write_text(TASKSETS)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    path = [str(tmp_path), str(REPOSITORY / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    weights = {}
    for name, more in (("one", ["--trainer.devices=1"]), ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"])):
        done = subprocess.run(
            [sys.executable, "-m", "mamllit.cli", "fit", "-c", "cell.yaml", "--run_name", name,
             "--trainer.default_root_dir", "runs", *more],
            cwd=tmp_path, env={**inherited, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        run = tmp_path / "runs" / name
        weights[name] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert len(list(run.glob("wandb/offline-run-*"))) == 1
        assert "taskset[5]" in (run / "result.json").read_text()
    assert any("compute_update" in name for name in weights["one"])  # MetaCurvature's own parameters
    for name, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][name], value, rtol=0, atol=1e-6)
