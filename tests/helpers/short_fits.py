"""A small MAML on sine waves, its data, and a Trainer on the CPU that does nothing beside, for the tests of `MetaLearner`."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from mamllit.backbones import MLP
from mamllit.data import SineDataModule
from mamllit.methods import MAML
from mamllit.objectives import Regression


def make_method(inner_lr: float = 0.01, outputs: int = 1) -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(1, [16, 16], outputs), Regression(), inner_lr, 1, "sum_over_shots")


def make_data(**changes: Any) -> SineDataModule:
    arguments = {"meta_batch_size": 4, "seed": 0, "val_episodes": 20, "test_episodes": 12, "eval_batch_size": 5}
    return SineDataModule(**{**arguments, **changes})


def make_trainer(max_steps: int = 1, **changes: Any) -> L.Trainer:
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "max_epochs": -1,
        "max_steps": max_steps,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**arguments, **changes})


def flat(method: MAML) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in method.parameters()])
