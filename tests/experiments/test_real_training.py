"""Every image experiment of MAML and of the works after it trains on the real images, by its own command: two iterations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
from reproduction.cells import Cell, find_cells  # noqa: E402

HOMES = {"omniglot": "MAMLLIT_OMNIGLOT", "mini_imagenet": "MAMLLIT_MINI_IMAGENET"}
CELLS = [cell for table in HOMES for cell in find_cells(EXPERIMENTS, table)]
ALONE = {  # as their papers have them
    "omniglot": {"mann", "neural_statistician", "siamese"},
    "mini_imagenet": {"fine_tuning", "linear_probe", "meta_learner_lstm"},
}


def test_every_method_of_images_is_here_with_both_data_sets() -> None:
    found = {table: {cell.path.parent.name for cell in CELLS if cell.table == table} for table in HOMES}
    both = found["omniglot"] & found["mini_imagenet"]
    assert {table: names - both for table, names in found.items()} == ALONE
    assert len(both) == 14


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.max_steps > 0], ids=lambda cell: cell.name)
def test_an_experiment_trains_on_the_real_images(cell: Cell, tmp_path: Path) -> None:
    if not (home := os.environ.get(HOMES[cell.table])):
        pytest.skip(f"{HOMES[cell.table]} is not set: the folder of the real images")
    words = ["fit", "-c", cell.path, "--data.root", home, "--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 2]
    words += ["--trainer.limit_val_batches", 0, "--test_after_fit", "false", "--wandb", "disabled"]
    words += ["--checkpoint_last.every_n_train_steps", 1]
    command = [sys.executable, "-m", "mamllit.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "seed_0"
    assert json.loads((run / "result.json").read_text())["steps_done"] == 2
    before, after = (weights(run / "checkpoints" / f"{name}.ckpt") for name in ("previous", "last"))
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]
