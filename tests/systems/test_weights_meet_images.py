"""A fit, a resume and an evaluation compare how the weights' images were prepared with what the data module gives."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mamllit.backbones import MLP, Conv4
from mamllit.callbacks.start_from import StartFrom
from mamllit.data import ClassPool, ImageDataModule, Preparation
from mamllit.data.preparation import omniglot
from mamllit.methods import MAML
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


class Drawings(ImageDataModule):
    """Dark on light, of 28x28."""

    def __init__(self, ways: int = 2) -> None:
        super().__init__(ways, queries=1, meta_batch_size=1, standard_queries=1, val_episodes=2, test_episodes=2, seed=0)

    def load(self) -> dict[str, ClassPool]:
        images = torch.full((20, 1, 28, 28), 255, dtype=torch.uint8)
        for i, image in enumerate(images):
            image[:, 5 + i % 5 : 10 + i % 5, 5:20] = 0
        pool = ClassPool.from_labels(images, [i % 5 for i in range(20)])
        return dict.fromkeys(("train", "val", "test"), pool)


def learner(network: torch.nn.Module | None = None) -> MetaLearner:
    method = MAML(network or MLP(784, [4], 2), Classification(), 0.1, 1, "sum_over_shots")
    return MetaLearner(method, compile=False, eval_steps=1)


def trainer(folder: Path, steps: int, *callbacks: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    endless = {"max_epochs": -1, "limit_val_batches": 0, "use_distributed_sampler": False, "inference_mode": False}
    return L.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **quiet, **endless)  # type: ignore[arg-type]


def test_a_fit_that_begins_with_omniglot_s_weights_sees_ink_as_1_and_so_does_its_continuation(tmp_path: Path) -> None:
    network = {"in_channels": 1, "filters": 64, "out_features": 5, "image_size": 28, "downsample": "stride"}
    data, first = Drawings(ways=5), trainer(tmp_path, 1, StartFrom("maml_omniglot_5way_1shot"))
    first.fit(learner(Conv4(**network)), datamodule=data)  # type: ignore[arg-type]
    assert data.inverted
    assert float(data.episodes(data.evaluation_sets("test")[0]).episodes.support.x[..., 0, :].max()) == 0
    first.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["preparation"]
    assert Preparation(**saved) == Preparation(28, 1, invert=True)

    for verb in ("fit", "test"):
        again = Drawings(ways=5)  # of the .ckpt alone, which does not say what the run began with
        run = trainer(tmp_path, 2)
        getattr(run, verb)(learner(Conv4(**network)), datamodule=again, ckpt_path=tmp_path / "a.ckpt")  # type: ignore[arg-type]
        assert again.inverted


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, 1)
    first.fit(learner(), datamodule=Drawings())
    first.save_checkpoint(tmp_path / "a.ckpt")
    saved: dict[str, Any] = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["preparation"] == Preparation(28, 1).as_dict()
    for how, problem in (
        (
            Preparation(28, 3),
            "the weights of the checkpoint were trained on 28x28 pixels, 3 channels, but the data has 28x28 pixels, 1 ch",
        ),
        (Preparation(28, 1, mean=0.5), "were trained with mean 0.5 and std 1"),
    ):
        torch.save(saved | {"preparation": how.as_dict()}, tmp_path / "b.ckpt")
        with pytest.raises(ValueError, match=problem):
            trainer(tmp_path, 2).fit(learner(), datamodule=Drawings(), ckpt_path=tmp_path / "b.ckpt")
    del saved["preparation"]  # of an older mamllit, or of another's data
    torch.save(saved, tmp_path / "b.ckpt")
    data = Drawings()
    trainer(tmp_path, 2).fit(learner(), datamodule=data, ckpt_path=tmp_path / "b.ckpt")
    assert not data.inverted


def test_a_module_whose_images_are_fixed_refuses_weights_of_the_other_ink(tmp_path: Path) -> None:
    class Fixed(Drawings):
        invert = None

        def stored(self) -> Preparation:
            return omniglot("nearest")

    first = trainer(tmp_path, 1)
    first.fit(learner(), datamodule=Drawings())
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="the weights of the checkpoint were trained with white = 1, but Fixed has ink = 1"):
        trainer(tmp_path, 2).test(learner(), datamodule=Fixed(), ckpt_path=tmp_path / "a.ckpt")


def test_a_plain_data_loader_gets_a_sentence(tmp_path: Path) -> None:
    batches = DataLoader(TensorDataset(torch.zeros(4, 784), torch.zeros(4)), batch_size=2)
    with pytest.raises(TypeError, match=r"needs an EpisodeBatch, and got a list: .*a subclass of mamllit.data.ImageDataModule"):
        trainer(tmp_path, 2).fit(learner(), batches)
