"""The training episodes of a run with epochs: new in every epoch, and after any stop those that the unbroken run has."""

import errno
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from short_fits import make_data, make_method, make_trainer
from torch.utils.data import DataLoader

from mamllit.systems import MetaLearner

EPOCHS = {"max_steps": -1, "max_epochs": 3, "limit_train_batches": 5}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


class Seen(L.Callback):
    """The number of the first episode of each meta-batch; writes a checkpoint after batch `stop`, and ends the run."""

    def __init__(self, path: Path | None = None, stop: int | None = None) -> None:
        self.numbers: list[int] = []
        self.path, self.stop = path, stop

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.numbers.append(int(batch.number[0]))
        if len(self.numbers) == self.stop:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt


def fit(seen: Seen, ckpt_path: Path | None = None, workers: int = 0, **changes: Any) -> list[int]:
    trainer = make_trainer(callbacks=[seen], **{**EPOCHS, **changes})
    learner = MetaLearner(make_method(), compile=False)
    try:
        trainer.fit(learner, datamodule=make_data(num_workers=workers), ckpt_path=ckpt_path, weights_only=False)
    except SystemExit:  # Lightning's way out of a KeyboardInterrupt
        assert seen.stop
    return seen.numbers


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint that ended before the epoch")  # it is resumable
@pytest.mark.parametrize(("stop", "workers"), [(5, 0), (7, 0), (10, 0), (7, 2)])
def test_epochs_go_on_in_the_stream_and_so_does_a_run_that_was_stopped(tmp_path: Path, stop: int, workers: int) -> None:
    whole = list(range(0, 60, 4))
    first = fit(Seen(tmp_path / "stopped.ckpt", stop), workers=workers)
    assert first == whole[:stop]
    assert fit(Seen(), tmp_path / "stopped.ckpt", workers) == whole[stop:]
    assert stop != 7 or fit(Seen(), workers=workers) == whole


def test_batches_are_counted_and_not_steps(tmp_path: Path) -> None:
    """Of five batches, two a step, the fifth is a step by itself."""
    assert fit(Seen(tmp_path / "stopped.ckpt", 7), accumulate_grad_batches=2) == list(range(0, 28, 4))
    assert fit(Seen(), tmp_path / "stopped.ckpt", accumulate_grad_batches=2) == list(range(28, 60, 4))


def test_a_longer_run_after_the_last_epoch_sees_new_episodes(tmp_path: Path) -> None:
    trainer = make_trainer(**EPOCHS)
    trainer.fit(MetaLearner(make_method(), compile=False), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert fit(Seen(), tmp_path / "end.ckpt", max_epochs=4) == list(range(60, 80, 4))


def test_loaders_made_anew_in_every_epoch_go_on() -> None:
    assert fit(Seen(), reload_dataloaders_every_n_epochs=1) == list(range(0, 60, 4))


def test_overfitting_repeats_the_same_episodes() -> None:
    assert fit(Seen(), overfit_batches=2, limit_train_batches=None, max_epochs=2, limit_val_batches=0) == [0, 4, 0, 4]


def test_workers_send_bytes_which_need_no_shared_memory() -> None:
    """Tensors go through /dev/shm, and a worker that finds no room there waits without a word."""
    loader = make_data(num_workers=1).train_dataloader()
    assert isinstance(next(DataLoader.__iter__(loader)), bytes)
    assert next(iter(loader)).number.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_room_for_the_workers_locks_is_said(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    def full(_: DataLoader) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = make_data(num_workers=2)
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()[0]
    monkeypatch.setattr(DataLoader, "__iter__", full)
    with pytest.raises(OSError, match=r"^num_workers is 2, but /dev/shm has no space \([\d,]+ bytes are free\) for the locks"):
        iter(loader)
