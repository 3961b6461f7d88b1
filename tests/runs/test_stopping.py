"""Signals: the run ends between two steps with a checkpoint and its result, and goes on to the bits of one left alone."""

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mamllit import cli
from mamllit.callbacks import CleanStop

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
    assert f"stopped by {number.name} after step {step}, saved as {tmp_path}/seed_0/checkpoints/last.ckpt; go on" in printed
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
    assert "stopped by SIGTERM during the evaluation; nothing was to be saved" in capsys.readouterr().out


def _files() -> list[str]:
    return ["-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml")]


def test_an_unwritable_run_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the run directory .*/file/seed_0 cannot be written \(Not a directory\): make room or"):
        fit(tmp_path / "file")


def test_a_run_whose_weights_could_not_be_saved_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mamllit.runs.durable.write", full)
    with pytest.raises(OSError, match=r"the run has ended, but its weights could not be saved: .*last\.ckpt \(No space left"):
        fit(tmp_path, "--trainer.max_steps", "4")
