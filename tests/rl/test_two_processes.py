"""Two processes make the steps that one makes: the same tasks and noise, the same gradient, products and line search.

In double precision: conjugate gradients make more of single precision's rounding than a test could tell from a fault.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys
import lightning as L
import torch
from mamllit.data import ControlDataModule
from mamllit.methods import MAML
from mamllit.rl import GaussianPolicy, Navigation, PolicyGradient
from mamllit.systems import MetaPolicy

torch.manual_seed(0)
learner = MetaPolicy(MAML(GaussianPolicy(2, 2, hidden=[8]), PolicyGradient(), 0.1, 1, "mean"), eval_steps=1)
data = ControlDataModule(
    Navigation(horizon=8), shots=4, queries=5, meta_batch_size=4, test_shots=[4], val_episodes=2, standard_episodes=3, seed=0
)
devices = int(sys.argv[1])
trainer = L.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, inference_mode=False, max_epochs=-1, max_steps=3,
    check_val_every_n_epoch=None, limit_val_batches=0, use_distributed_sampler=False, precision="64-true",
)
trainer.fit(learner, datamodule=data)
trainer.test(learner, datamodule=data, verbose=False)
if trainer.is_global_zero:
    means = {name: summary.mean for name, summary in learner.summaries.items()}
    torch.save((dict(learner.state_dict()), means, trainer.optimizers[0].taken), sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_are_one_to_rounding(tmp_path: Path) -> None:
    (script := tmp_path / "script.py").write_text(SCRIPT)
    found = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.pt"
        inherited = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
        done = subprocess.run(
            [sys.executable, str(script), str(devices), str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=400,
            env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(out, weights_only=False))
    (weights, means, taken), (others, other_means, other_taken) = found
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-7, atol=1e-9)
    for name, mean in means.items():
        torch.testing.assert_close(other_means[name], mean, rtol=1e-7, atol=1e-7)
    assert taken.shortened == other_taken.shortened
    assert taken.kl == pytest.approx(other_taken.kl, rel=1e-7)
