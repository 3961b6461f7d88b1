"""Streams that share a memory: a step against a loop, the memory in the checkpoint, and what is refused."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from short_fits import make_trainer
from torch import nn
from toy_images import SIDE, ToyImages
from toy_streams import ToyStreams

from mamllit.data.streams import Presentation
from mamllit.methods import MemoryModule
from mamllit.methods.memory_module import remember
from mamllit.objectives import Classification
from mamllit.systems import MemoryStream

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
D = 5


def system(**settings: Any) -> MemoryStream:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, D))
    method = MemoryModule(backbone, Classification(), features=D, keep=settings.pop("keep", 0.5))
    settings = {"streams": 4, "ways": 3, "slots": 40, "eval_steps": 3, "log_every": 12, **settings}
    return MemoryStream(method, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), **settings)


def test_a_round_of_streams_is_presented_image_by_image() -> None:
    data = ToyStreams(presentations=True)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    whole = [data.build(data.draw(0, "train", 0, 4, first, 4)).episodes.query for first in (0, 4)]
    for step in range(15):
        batch = data.on_after_batch_transfer(next(batches), 0)
        assert isinstance(batch, Presentation)
        assert batch.place == step % 12
        assert torch.equal(batch.x, whole[step // 12].x[:, batch.place])
        assert torch.equal(batch.y, whole[step // 12].y[:, batch.place])


def fit(folder: Path, steps: int, checkpoint: Path | None = None) -> tuple[MemoryStream, L.Trainer]:
    kept = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=17, save_top_k=-1)
    model = system()
    trainer = make_trainer(steps, callbacks=[kept], enable_checkpointing=True, default_root_dir=folder)
    trainer.fit(model, ToyStreams(presentations=True), ckpt_path=checkpoint)
    return model, trainer


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_it_resumes_within_a_stream_to_the_bit_memory_included(tmp_path: Path) -> None:
    whole, trainer = fit(tmp_path / "whole", 22)
    resumed, _ = fit(tmp_path / "rest", 22, tmp_path / "whole" / "step=17.ckpt")
    state = whole.state_dict()
    assert {"memory_keys", "memory_values", "memory_ages", "memory_recent"} <= set(state)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert (whole.memory.values >= 0).sum() > 4  # the second round has begun, after the memory was emptied
    assert whole.memory.ages.max() == 22 - 12
    trainer.test(whole, ToyStreams(), verbose=False)
    assert whole.summaries["stream[4]"].mean.shape == (4,)
    assert whole.summaries["stream[4]"].mean[0] == pytest.approx(1 / 9)
    assert whole.summaries["standard[5]/2-shot"].mean.shape == (1,)


def test_a_step_updates_the_weights_by_the_loss_of_all_streams(tmp_path: Path) -> None:
    """The first two presentations by hand: nothing is known in the first; the second has the labels of four streams."""
    model = system(keep=1.0)
    start = {name: value.clone() for name, value in model.method.named_parameters()}
    trainer = make_trainer(2, default_root_dir=tmp_path)
    data = ToyStreams(presentations=True)
    trainer.fit(model, data)
    other = system(keep=1.0)
    streams = data.build(data.draw(data.seed, "train", 0, 4, 0, 4)).episodes.query
    memory = other.emptied()
    labels = streams.y + 3 * torch.arange(4)[:, None]
    for place in (0, 1):
        q = other.memory_module.queries(streams.x[:, place])
        loss = other.memory_module.loss(memory, q, labels[:, place]).mean()
        gradients = torch.autograd.grad(loss, list(other.method.parameters()))
        with torch.no_grad():
            for value, gradient in zip(other.method.parameters(), gradients, strict=True):
                value -= 0.1 * gradient
        memory = remember(memory, q.detach(), labels[:, place])
    for name, value in model.method.named_parameters():
        torch.testing.assert_close(value, dict(other.method.named_parameters())[name])
    assert any(not torch.equal(value, start[name]) for name, value in model.method.named_parameters())
    assert sorted(model.memory.values[model.memory.values >= 0].tolist()) == sorted(memory.values[memory.values >= 0].tolist())


def refused(text: str) -> Any:
    return pytest.raises(ValueError, match=re.escape(text))


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("streams is 0 and ways is 3; there must be at least 1 stream and 2 ways"):
        system(streams=0)
    with refused("slots is 3 and streams is 4; each stream may write in a step: slots >= streams"):
        system(slots=3)
    with refused("age_noise is -1; it must be >= 0"):
        system(age_noise=-1)
    trainer = make_trainer(1, default_root_dir=tmp_path)
    with refused("MemoryStream trains on single presentations, and ToyImages does not give them"):
        trainer.fit(system(), ToyImages())
    with refused("streams is 2, but the data's meta_batch_size is 4; give both the same number"):
        trainer.fit(system(streams=2), ToyStreams(presentations=True))
    with refused("ways is 4, but the data's ways is 3"):
        trainer.fit(system(ways=4), ToyStreams(presentations=True))
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    with refused("MemoryStream trains in one process, and there are 2: its streams share a memory that changes"):
        make_trainer(1, default_root_dir=tmp_path).fit(system(), ToyStreams(presentations=True, meta_batch_size=4))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = system(log_every=1)
    torch.nn.init.constant_(model.memory_module.query.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1; use a smaller learning rate, or clip"):
        make_trainer(1, default_root_dir=tmp_path).fit(model, ToyStreams(presentations=True))
