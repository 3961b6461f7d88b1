"""Signals: the run ends between two steps with a checkpoint and its result, and goes on to the bits of one left alone."""

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mamllit import cli
from mamllit.callbacks import CleanStop
from mamllit.runs.stopping import follow

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mamllit"])


def fit(root: Path, *more: str) -> cli.MamllitCLI:
    files = ["-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml")]
    options = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--test_after_fit", "false"]
    return cli.run(["fit", *files, "--trainer.default_root_dir", str(root), *options, *more])


def signal_at(patch: pytest.MonkeyPatch, hook: str, step: int, number: int) -> None:
    """Let this process get a signal when a hook of CleanStop is called at a step."""
    original = getattr(CleanStop, hook)

    def with_signal(self: Any, trainer: L.Trainer, *rest: Any, **more: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)
        original(self, trainer, *rest, **more)

    patch.setattr(CleanStop, hook, with_signal)


def state(root: Path, name: str) -> dict[str, Any]:
    return torch.load(root / "seed_0/checkpoints" / f"{name}.ckpt", weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is left alone."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mamllit"])
        fit(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "step", "number"),
    [
        ("on_train_batch_end", 7, signal.SIGTERM),
        ("on_train_batch_end", 10, signal.SIGUSR1),  # a validation is due
        ("on_validation_batch_end", 10, signal.SIGINT),
        ("on_validation_batch_end", 20, signal.SIGTERM),  # at the very end
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    hook: str, step: int, number: signal.Signals, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, hook, step, number)
        with pytest.raises(SystemExit) as ended:
            fit(tmp_path)
    assert ended.value.code == 128 + number
    printed = capsys.readouterr().out
    assert f"{number.name}: stopping after this step" in printed
    assert f"stopped by {number.name} after step {step}, saved as {tmp_path}/seed_0/checkpoints/last.ckpt; resume" in printed
    result = json.loads((tmp_path / "seed_0/result.json").read_text())
    assert result["steps_done"] == step
    assert result["fit"]["stopped"].startswith(f"Stopped: stopped by {number.name}")
    assert state(tmp_path, "last")["global_step"] == step
    with (tmp_path / "seed_0/csv/version_0/metrics.csv").open() as file:  # each fifth, that of the last step included
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/meta_loss"]]
    assert logged == list(range(4, step, 5))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    fit(tmp_path, "--ckpt_path", "last")
    for name in ("last", "best"):
        one, other = state(tmp_path, name), state(whole, name)
        assert one["global_step"] == other["global_step"]
        assert all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items())
    one, other = (json.loads((root / "seed_0/result.json").read_text()) for root in (tmp_path, whole))
    assert one["results"] == other["results"]
    assert one["best_checkpoint"] == other["best_checkpoint"]
    assert "stopped" not in one["fit"]


def test_a_second_ctrl_c_stops_at_once() -> None:
    stop = CleanStop()
    stop._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)


def test_a_test_is_stopped_between_two_batches(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CleanStop, "on_test_start", lambda self, *_: setattr(self, "signal", signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            cli.run(["test", *_files(), "--trainer.default_root_dir", str(whole)])
    assert ended.value.code == 143
    assert "stopped by SIGTERM during the evaluation; there was nothing to save" in capsys.readouterr().out


def _files() -> list[str]:
    return ["-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml")]


def test_an_unwritable_run_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"the run directory .*/file/seed_0 cannot be written \(Not a directory\): free some space"
    ):
        fit(tmp_path / "file")


def test_a_run_whose_weights_could_not_be_saved_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mamllit.runs.durable.write", full)
    with pytest.raises(OSError, match=r"the run finished, but its weights could not be saved: .*last\.ckpt \(No space left"):
        fit(tmp_path, "--trainer.max_steps", "4")


def test_stopped_in_the_test_after_the_fit_it_names_the_command_that_retrains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(monkeypatch, "on_test_batch_end", 2, signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "--trainer.max_steps", "2", "--test_after_fit", "true")
    assert stopped.value.code == 130
    said = capsys.readouterr().out
    assert "stopped by SIGINT during the test after the fit; training is complete, and its weights are in " in said
    assert "last.ckpt: evaluate them with `mamllit test` and the same configuration" in said
    assert "run the command again" not in said


def test_a_moved_run_keeps_its_best(tmp_path: Path) -> None:
    """Only the files that went along are known in the new place."""
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    (new / "best.ckpt").touch()
    callback = ModelCheckpoint(new, monitor="val/mse", filename="best")
    state = {
        "monitor": "val/mse",
        "best_model_score": torch.tensor(0.5),
        "best_model_path": str(old / "best.ckpt"),
        "current_score": torch.tensor(0.7),
        "dirpath": str(old),
        "best_k_models": {str(old / "best.ckpt"): torch.tensor(0.5), str(old / "gone.ckpt"): torch.tensor(0.6)},
        "kth_best_model_path": str(old / "gone.ckpt"),
        "kth_value": torch.tensor(0.6),
        "last_model_path": "",
    }
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[callback])
    checkpoint = {"callbacks": {callback.state_key: dict(state)}}
    follow(trainer, checkpoint)
    callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    assert callback.best_model_path == str(new / "best.ckpt")
    assert callback.best_model_score == torch.tensor(0.5)
    assert list(callback.best_k_models) == [str(new / "best.ckpt")]
    assert callback.kth_best_model_path == ""
    (new / "best.ckpt").unlink()
    checkpoint = {"callbacks": {callback.state_key: dict(state)}}
    follow(trainer, checkpoint)
    moved = checkpoint["callbacks"][callback.state_key]
    assert (moved["best_model_path"], moved["best_model_score"], moved["best_k_models"]) == ("", None, {})


def test_a_run_goes_on_and_ends_after_its_directory_was_moved(tmp_path: Path) -> None:
    fit(tmp_path / "a", "--trainer.max_steps", "12")
    (tmp_path / "a").rename(tmp_path / "b")
    before = json.loads((tmp_path / "b/seed_0/result.json").read_text())["best_checkpoint"]
    done = fit(tmp_path / "b", "--trainer.max_steps", "14", "--ckpt_path", "last")
    assert done.trainer.global_step == 14
    assert json.loads((tmp_path / "b/seed_0/result.json").read_text())["best_checkpoint"] == before
