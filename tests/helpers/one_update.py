"""A run of one meta-update, for the tests of several processes."""

from typing import Any

LR = 0.01


def cell(name: str) -> dict[str, Any]:
    """A configuration of one meta-update with plain SGD, whose step is the gradient."""
    sine = name == "sine"
    backbone: dict[str, Any] = {"in_features": 1 if sine else 64, "hidden": [16], "out_features": 1 if sine else 3}
    method = {
        "backbone": {"class_path": "mamllit.backbones.MLP", "init_args": backbone},
        "objective": f"mamllit.objectives.{'Regression' if sine else 'Classification'}",
        "inner_lr": 0.01 if sine else 0.1,
        "inner_steps": 2,
        "reduction": "sum_over_shots",
    }
    images = {"class_path": "toy_images.ToyImages", "init_args": {"test_episodes": 5}}
    sines = {"test_shots": [5], "protocols": ["paper"], "test_episodes": 7, "eval_batch_size": 3, "meta_batch_size": 4}
    metric = "mse" if sine else "accuracy"
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 1,
            "val_check_interval": 1,
            "logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}}],
        },
        "model": {
            "method": {"class_path": "mamllit.methods.MAML", "init_args": method},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": LR}},
            "eval_steps": 3,
            "compile": False,
            "log_every": 1,
        },
        "data": {"class_path": "mamllit.data.SineDataModule", "init_args": sines} if sine else images,
        "checkpoint_best": {"monitor": f"val/{metric}", "mode": "min" if sine else "max"},
    }
