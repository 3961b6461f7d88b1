"""Run directories and image folders for tests, made in a blink: the files that `mamllit fit` leaves, without a fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from mamllit.backbones import Conv4
from mamllit.methods import MAML
from mamllit.objectives import Classification

SIDE = 16
BACKBONE = {"in_channels": 1, "filters": 8, "out_features": 3, "image_size": SIDE, "downsample": "stride"}


def toy_method(out_features: int = 3) -> MAML:
    """MAML over a small Conv4 with another seed for its weights than the tests have."""
    torch.manual_seed(7)
    backbone = Conv4(**{**BACKBONE, "out_features": out_features})
    return MAML(backbone, Classification(), inner_lr=0.1, inner_steps=1, reduction="sum_over_shots")


def toy_config(**changes: Any) -> dict[str, Any]:
    """What config.yaml holds of a run with `toy_method`; `changes` replace parts of it."""
    return {
        "trainer": {"default_root_dir": "runs/maml/toy_3way", "max_steps": 40},
        "model": {
            "method": {
                "class_path": "mamllit.methods.MAML",
                "init_args": {
                    "backbone": {"class_path": "mamllit.backbones.Conv4", "init_args": dict(BACKBONE)},
                    "objective": {"class_path": "mamllit.objectives.Classification"},
                    "inner_lr": 0.1,
                    "inner_steps": 1,
                    "reduction": "sum_over_shots",
                    "first_order": False,
                    "frozen": ["*.beta", "*.gamma"],
                },
            },
            "report_step": 3,
        },
        "data": {
            "class_path": "mamllit.data.ImageFolderDataModule",
            "init_args": {
                "root": "/secret/folder",
                "test_classes": "/secret/list.txt",
                "image_size": SIDE,
                "channels": 1,
                "ways": 3,
            },
        },
        "results": {"published": {"paper": {3: 0.987}}},
        **changes,
    }


def toy_result(steps: int = 30, **changes: Any) -> dict[str, Any]:
    """What result.json holds after a test."""

    def entry(split: str) -> dict[str, Any]:
        values = {"mean": [0.3, 0.812345678, 0.9, 0.95], "ci95": [0.01, 0.02, 0.03, 0.004]}
        return {
            "step": steps,
            "protocol": "paper",
            "split": split,
            "shots": 1,
            "queries": 1,
            "episodes": 600,
            "median": [1.0],
            **values,
        }

    return {
        "method": "MAML",
        "metric": "accuracy",
        "transductive": True,
        "steps_done": steps,
        "seed": 5,
        "commit": "0123456789abcdef",
        "command": ["mamllit", "fit", "--data.root", "/secret/folder"],
        "versions": {"torch": "2"},
        "machine": {"threads": 1},
        "results": {"val": entry("val"), "paper": entry("test")},
        **changes,
    }


def toy_run(folder: Path, method: MAML | None = None, config: Any = None, result: Any = None, steps: int = 30) -> Path:
    """A run directory with last.ckpt after `steps` steps and best.ckpt after 20."""
    method = toy_method() if method is None else method
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(toy_config() if config is None else config))
    (folder / "result.json").write_text(json.dumps(toy_result(steps) if result is None else result))
    weights = {f"method.{name}": value for name, value in method.state_dict().items()}
    for name, at, factor in (("last", steps, 1.0), ("best", 20, 0.5)):
        state = {key: value * factor for key, value in weights.items()} | {"other": torch.zeros(1)}
        torch.save({"state_dict": state, "global_step": at}, folder / "checkpoints" / f"{name}.ckpt")
    return folder


def toy_image(path: Path, kind: int, seed: int, side: int = 24) -> Path:
    """Black bars on white, upright, flat or slanted by `kind` 0, 1, 2, shifted and noisy by `seed`."""
    random = np.random.default_rng([kind, seed])
    y, x = np.mgrid[:side, :side] + random.integers(0, 6)
    bars = ((x, y, x + y)[kind] // 4) % 2
    pixels = 255 * (1 - bars) + random.normal(0, 20, (side, side))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def toy_folders(root: Path, shots: tuple[int, ...] = (2, 2, 2), queries: int = 3) -> tuple[Path, Path]:
    """A support folder with classes a, b, c and a query folder with the same sub-folders."""
    for kind, (name, count) in enumerate(zip("abc", shots, strict=False)):
        for i in range(count):
            toy_image(root / "support" / name / f"{i}.png", kind, i)
        for i in range(queries):
            toy_image(root / "query" / name / f"{i}.png", kind, 100 + i)
    return root / "support", root / "query"
