"""Stopping cleanly: on SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 (Slurm's warning) a checkpoint is written, then the run ends.

A signal only sets a flag. It is read after the current meta-update, when the state is consistent, and all ranks stop after the
same step, whichever of them got the signal. A validation is not waited for: its checkpoint was written before it began, and
the resumed run begins with it.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from mamllit.runs.logs import log_early

# Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")  # in the state of a ModelCheckpoint


class Stopped(Exception):
    """The run was stopped by a signal, and nothing is lost. `code` is the process's exit code, 128 + the signal's number."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {text}")
        self.code = 128 + number


class CleanStop(L.Callback):
    """Stops a fit between two steps, and a test between two batches; raises `Stopped`.

    A second Ctrl-C stops at once. The loggers' files are written before each checkpoint, so that a killed run has all that came
    before the checkpoint it goes on from. `trained` says whether there was a step.

    Args:
        last: the callback in whose folder the run's `last.ckpt` lies, where there are several.
    """

    def __init__(self, last: ModelCheckpoint | None = None) -> None:
        self.signal: int | None = None
        self.last, self.trained = last, False
        self._validated_at = -1
        self._fitted = False
        self._owed = False  # the checkpoint was written before the validation of its step

    def state_dict(self) -> dict[str, Any]:
        return {"validated_at": self._validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated_at = state_dict["validated_at"]

    # ---- signals -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take the signals; Lightning puts back what was there before, at the end of a fit or test."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print(f"\n{signal.Signals(number).name}: stopping after this step", flush=True)

    def _asked(self, trainer: L.Trainer) -> bool:
        """Whether any rank has got a signal; each rank asks after the same steps."""
        return trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)

    # ---- meta-training -------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()
        if self._owed:
            self._owed = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fitted = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.trained = True
        stop = self._asked(trainer)
        if stop or self._due(trainer):
            trainer.save_checkpoint(last_checkpoint(trainer), weights_only=False)
        if stop:
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.signal is not None and trainer.world_size == 1:  # the ranks' numbers of batches may differ
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated_at = trainer.global_step

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether this step ends with a validation that has not been made."""
        every = trainer.val_check_batch
        if not trainer.enable_validation or not isinstance(every, int) or self._validated_at == trainer.global_step:
            return False
        return trainer.global_step > 0 and (trainer.fit_loop.total_batch_idx + 1) % every == 0

    def _stop(self, trainer: L.Trainer) -> None:
        number = self.signal or signal.SIGTERM  # of another rank
        if trainer.state.fn != TrainerFn.FITTING:
            if self._fitted:
                raise Stopped(
                    number,
                    f"during the test after the fit; training is complete, and its weights are in {last_checkpoint(trainer)}: "
                    "evaluate them with `mamllit test` and the same configuration",
                )
            raise Stopped(number, "during the evaluation; there was nothing to save: run the command again")
        log_early(trainer)
        for logger in trainer.loggers:
            logger.save()
        path = last_checkpoint(trainer)
        raise Stopped(number, f"after step {trainer.global_step}, saved as {path}; resume with --ckpt_path last")

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["validation_due"] = trainer.state.fn == TrainerFn.FITTING and self._due(trainer)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.validating:
            log_early(trainer)
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._owed = bool(checkpoint.get("validation_due")) and trainer.state.fn == TrainerFn.FITTING
        follow(trainer, checkpoint)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            self._listen()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.signal is not None and trainer.world_size == 1:
            self._stop(trainer)


def follow(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """If a run directory was moved, let the checkpoint's record of the best models point to the files in the new place.

    Lightning would forget how good the best was, and keep a path that leads nowhere, or into another run.
    """
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not state or not callback.dirpath or "dirpath" not in state:
            continue
        if state["dirpath"] == callback.dirpath:
            continue
        here = Path(callback.dirpath)
        moved = {path: str(here / Path(path).name) for path in [*state["best_k_models"], *_paths(state)] if path}
        moved = {old: new for old, new in moved.items() if Path(new).exists()}
        state["dirpath"] = callback.dirpath
        state["best_k_models"] = {moved[old]: score for old, score in state["best_k_models"].items() if old in moved}
        for name in PATHS:
            state[name] = moved.get(state.get(name, ""), "")
        if not state["best_model_path"]:
            state["best_model_score"] = None


def _paths(state: dict[str, Any]) -> list[str]:
    return [state.get(name, "") for name in PATHS]


def last_checkpoint(trainer: L.Trainer) -> Path:
    """Where the run's `last.ckpt` lies: not with a ModelCheckpoint of the user's own, which may stand before ours."""
    stops = (callback for callback in trainer.callbacks if isinstance(callback, CleanStop))  # type: ignore[attr-defined]
    own = next((stop.last for stop in stops if stop.last is not None), trainer.checkpoint_callback)
    folder = own.dirpath if own is not None else None  # type: ignore[attr-defined]
    return Path(folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"


def own_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """The callbacks that write where the run's `last.ckpt` lies."""
    folder = last_checkpoint(trainer).parent
    every = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [callback for callback in every if callback.dirpath and Path(callback.dirpath) == folder]
