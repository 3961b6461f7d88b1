"""A run that has ended stays ended, and its last checkpoint is its own, whatever other callbacks and strategies do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import QUIET, command, contents, result, short

from mamllit import cli

pytestmark = QUIET


def checkpoints(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(run).items() if name.startswith("checkpoints/")}


@pytest.mark.slow
def test_a_finished_run_stays_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = short(tmp_path, "--checkpoint_last.every_n_train_steps", "1000", "--trainer.val_check_interval", "2")
    arguments[arguments.index("--trainer.max_steps") + 1] = "4"
    cli.run(arguments)
    before, ended = checkpoints(tmp_path / "seed_0"), result(tmp_path / "seed_0")
    with caplog.at_level("INFO"):
        for _ in range(3):
            done = cli.run([*arguments, "--ckpt_path", "last"])
            assert done.trainer.global_step == 4
            assert checkpoints(tmp_path / "seed_0") == before
    assert caplog.text.count("the run already has all of its 4 steps: nothing to train") == 3
    assert result(tmp_path / "seed_0")["results"] == ended["results"]
    apart = [
        "--trainer.default_root_dir",
        str(tmp_path / "apart"),
        "--ckpt_path",
        str(tmp_path / "seed_0/checkpoints/last.ckpt"),
    ]
    cli.run([*arguments, *apart, "--test_after_fit", "true"])  # tested under another experiment's name
    assert result(tmp_path / "apart" / "seed_0")["fit"] == ended["fit"]
    longer = [*arguments, "--ckpt_path", "last", "--trainer.max_steps", "5"]
    assert cli.run(longer).trainer.global_step == 5  # and goes on where it is asked to


def step(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.slow
def test_a_checkpoint_callback_of_ones_own_keeps_its_files_and_we_ours(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    callback = f'{{"class_path": "ModelCheckpoint", "init_args": {{"dirpath": "{own}", "monitor": "val/mse_step2_mean"}}}}'
    cli.run(command("fit", tmp_path / "runs", "--trainer.callbacks+", callback, "--trainer.max_steps", "13"))
    run = tmp_path / "runs" / "seed_0"
    assert step(run / "checkpoints" / "last.ckpt") == 13
    assert [path.name for path in own.iterdir()] == ["epoch=0-step=10.ckpt"]  # the better of two validations
    written = result(run)
    assert written["steps_done"] == 13
    assert written["best_checkpoint"]["path"] == "checkpoints/best.ckpt"
    cli.run(command("test", tmp_path / "runs"))
    assert result(run)["steps_done"] == 13


def test_one_with_the_settings_of_ours_is_explained(tmp_path: Path) -> None:
    callback = '{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine", "monitor": "val/mse", "mode": "min"}}'
    with pytest.raises(
        ValueError, match="a ModelCheckpoint beside checkpoint_last and checkpoint_best needs another monitor, mode"
    ):
        cli.run(short(tmp_path / "runs", "--trainer.callbacks+", callback))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp_fork",
        "ddp_notebook",
        "ddp_spawn",
        "ddp_spawn_find_unused_parameters_true",
        '{"class_path": "DDPStrategy", "init_args": {"start_method": "spawn"}}',
    ],
)
def test_processes_that_keep_their_weights_are_refused(strategy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep the weights that they train, and this one would save and test untrained ones"):
        cli.run(short(tmp_path / "root", "--trainer.strategy", strategy, "--trainer.devices", "2"))
    assert not (tmp_path / "root").exists()
