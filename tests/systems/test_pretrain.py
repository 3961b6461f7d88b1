"""Pre-training under a real Trainer: it learns, validates by episodes, resumes exactly, starts other trainings, and refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import QUIET, result
from short_fits import make_trainer
from torch import Tensor, nn
from toy_images import CLASSES, ToyImages

from mamllit import cli
from mamllit.backbones import MLP, Conv4
from mamllit.callbacks.start_from import StartFrom, find_in_run, take_what_fits
from mamllit.core.episode import Examples
from mamllit.data.plain import PlainBatches
from mamllit.engine.evaluation import evaluate
from mamllit.methods import MAML, PrototypicalNetworks
from mamllit.objectives import Classification
from mamllit.pretrained import load
from mamllit.pretrained.export import export
from mamllit.systems import MetaLearner, PreTrainer
from mamllit.systems.pretrain import count_features

pytestmark = QUIET
PLAIN = PlainBatches(16, crop=1, flip=True)


def backbone(**changes: Any) -> Conv4:
    return Conv4(**{"in_channels": 1, "filters": 8, "out_features": None, "image_size": 8, "downsample": "stride", **changes})


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True)


def make(head: str = "linear", **changes: Any) -> PreTrainer:
    torch.manual_seed(0)
    return PreTrainer(backbone(), CLASSES, head, optimizer=sgd, log_every=1, **changes)  # type: ignore[arg-type]


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_it_learns_the_classes_and_is_judged_by_episodes(head: str) -> None:
    data, trainer = ToyImages(plain=PlainBatches(16)), make_trainer(40, limit_val_batches=None, val_check_interval=40)
    learner = make(head)
    trainer.fit(learner, data)
    assert float(trainer.callback_metrics["train/accuracy"]) > 0.5  # chance is 1 / 8
    (evaluation,) = data.evaluation_sets("val")
    judged = evaluate(learner.method, data.episodes(evaluation).episodes, 0)
    assert learner.summaries["val"].mean.tolist() == [float(judged.double().mean())]


def test_a_step_is_that_of_plain_pytorch() -> None:
    """Cross-entropy of the first batch, Nesterov momentum, one cycle of the rate: five steps, written out."""
    data, learner = ToyImages(plain=PLAIN), make(lr_scheduler=cycle)
    make_trainer(5).fit(learner, data)
    plain, other = make(), ToyImages(plain=PLAIN)
    other.setup("fit")
    optimizer = sgd(plain.parameters())
    scheduler, batches = cycle(optimizer), iter(other.train_dataloader())
    for _ in range(5):
        batch = other.build_plain(next(batches)).examples
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain.head(plain.backbone(batch.x)), batch.y).backward()
        optimizer.step()
        scheduler.step()
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)


TOY = """
seed_everything: 0
trainer: {default_root_dir: ROOT, max_steps: 6, val_check_interval: 3, accelerator: cpu, logger: false}
model:
  class_path: mamllit.systems.PreTrainer
  init_args:
    backbone:
      class_path: mamllit.backbones.Conv4
      init_args: {in_channels: 1, filters: 8, out_features: null, image_size: 8, downsample: stride}
    classes: 8
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
    lr_scheduler: {class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.1, total_steps: 6}}
data:
  class_path: toy_images.ToyImages
  init_args: {plain: {batch_size: 16, crop: 1, flip: true}}
checkpoint_last: {every_n_train_steps: 3}
"""
MAML_ON_IT = """
model:
  method:
    class_path: mamllit.methods.MAML
    init_args:
      backbone:
        class_path: mamllit.backbones.Conv4
        init_args: {in_channels: 1, filters: FILTERS, out_features: 3, image_size: 8, downsample: stride}
      objective: mamllit.objectives.Classification
      inner_lr: 0.1
      inner_steps: 1
      reduction: mean
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.0}}
data: {class_path: toy_images.ToyImages}
trainer: {default_root_dir: ROOT, max_steps: 1, val_check_interval: 1, accelerator: cpu, logger: false}
"""


def fit(folder: Path, name: str, text: str, *more: str) -> Path:
    (folder / f"{name}.yaml").write_text(text.replace("ROOT", str(folder / name)))
    cli.run(["fit", "-c", str(folder / f"{name}.yaml"), *more])
    return folder / name / "seed_0"


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_run_of_the_command_line_resumes_exactly_and_starts_another(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    whole = fit(tmp_path, "whole", TOY)
    assert set(result(whole)["results"]) == {"val", "standard[5]", "standard[5]/inductive"}
    parts = fit(tmp_path, "parts", TOY, "--trainer.max_steps", "3", "--test_after_fit", "false")
    fit(tmp_path, "parts", TOY, "--ckpt_path", "last")
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)

    maml = MAML_ON_IT.replace("FILTERS", "8")
    begun = weights(fit(tmp_path, "maml", maml, "--init_from", str(whole)))
    best = weights(whole, "best")
    for name in begun:
        assert (name in best and torch.equal(begun[name], best[name])) != name.startswith("method.backbone.head"), name
    said = capfd.readouterr().out
    assert "loaded 12 of the model's 14 tensors, method.backbone.convs.0.weight," in said
    assert "not loaded: method.backbone.head.weight, method.backbone.head.bias" in said
    assert "not used from the file: head.weight, head.bias" in said
    origin = result(tmp_path / "maml" / "seed_0")["fit"]["started_from"]
    assert origin["name"] == str(whole / "checkpoints" / "best.ckpt")
    assert origin["steps_done"] in (3, 6)

    file = export(whole, ckpt="last", out=tmp_path / "features.safetensors", trusted=["toy_images"])
    again = weights(fit(tmp_path, "file", maml, "--init_from", str(file)))
    said, last = capfd.readouterr().out, weights(whole)
    assert "starts from features; not in the file, and not loaded: backbone.head.weight, backbone.head.bias" in said
    for name in again:
        assert name.startswith("method.backbone.head") or torch.equal(again[name], last[name]), name
    assert result(tmp_path / "file" / "seed_0")["fit"]["started_from"] == {"name": "features", "steps_done": 6, "seed": 0}
    method = load(file)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = method.adapt(Examples(x, torch.tensor([0, 1, 2, 0, 1, 2]), ways=3), steps=0)
    assert method.predict(state, x[:3]).argmax(-1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"the checkpoint features does not fit the model: backbone\.convs\.0\.weight is"):
        fit(tmp_path, "file_wide", MAML_ON_IT.replace("FILTERS", "9"), "--init_from", str(file))

    with pytest.raises(ValueError, match=r"no tensor in .*best\.ckpt fits: it has .*; use a run with the same backbone"):
        fit(tmp_path, "wide", MAML_ON_IT.replace("FILTERS", "9"), "--init_from", str(whole))


# ---- weights of another run --------------------------------------------------------------------------------------------


def test_of_a_run_the_best_checkpoint_is_meant_else_the_last(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"init_from is '.*', but there is no .*best\.ckpt and no .*last\.ckpt; give a run"
    ):
        StartFrom(str(tmp_path))
    for name in ("last", "best"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
        assert find_in_run(str(tmp_path)) == tmp_path / "checkpoints" / f"{name}.ckpt"
    with pytest.raises(
        FileNotFoundError, match=r"init_from is '.*none\.ckpt', but there is no .*none\.ckpt; give a run directory"
    ):
        StartFrom(str(tmp_path / "none.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"init_from is '.*seed_0', but there is no such run; train it first"):
        StartFrom(str(tmp_path / "seed_0"))
    assert find_in_run("maml_sine") is None


def test_what_fits_goes_by_name_and_shape() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    said = take_what_fits(
        module, {"0.weight": torch.ones(3, 2), "1.weight": torch.ones(5, 3), "x": torch.ones(1)}, Path("a.ckpt")
    )
    assert said == (
        "starts from a.ckpt: loaded 1 of the model's 4 tensors, 0.weight; not loaded: 0.bias, 1.weight, 1.bias; "
        "not used from the file: 1.weight, x"
    )
    after = module.state_dict()
    assert torch.equal(after["0.weight"], torch.ones(3, 2))
    assert all(torch.equal(after[name], before[name]) for name in before if name != "0.weight")


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: PreTrainer(backbone(), 1), "classes is 1; there must be at least 2 to tell apart"),
        (lambda: PreTrainer(backbone(), 8, "round"), "head is 'round'; it must be 'linear' or 'cosine'"),
        (lambda: PreTrainer(backbone(), 8, label_smoothing=1.0), "label_smoothing is 1.0; it must be in [0, 1)"),
        (
            lambda: PreTrainer(backbone(out_features=5), 8),
            "the backbone has a head of 5 outputs; set out_features: null to get features",
        ),
        (
            lambda: count_features(nn.Identity()),
            "Identity lacks in_channels and image_size; give it these attributes",
        ),
    ],
)
def test_settings_out_of_bounds_are_refused(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_it()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ToyImages(plain=PlainBatches(16, rotated_classes=True)),
            "classes is 8, but the meta-train split has 32: use that",
        ),
        (
            ToyImages(),
            "PreTrainer trains on plain batches, and ToyImages gives none; use an image data set and set its `plain`",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(data: ToyImages, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer().fit(make(), data)


def test_a_meta_learner_refuses_plain_batches() -> None:
    method = MAML(MLP(64, [4], 3), Classification(), 0.1, 1, "mean")
    with pytest.raises(
        ValueError, match=r"the data gives plain batches .*, and MetaLearner trains on episodes; leave `plain` out"
    ):
        make_trainer().fit(MetaLearner(method), ToyImages(plain=PLAIN))


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    learner = make()
    with torch.no_grad():
        next(learner.head.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; use a smaller learning rate, or clip"):
        make_trainer().fit(learner, ToyImages(plain=PLAIN))


def test_networks_of_fixed_outputs_refuse_other_train_ways_and_feature_networks_take_any() -> None:
    fixed = MAML(MLP(64, [4], 3), Classification(), 0.1, 1, "mean")
    with pytest.raises(ValueError, match=r"the network has 3 outputs .*, but an episode of the data has 5 train_ways"):
        make_trainer().fit(MetaLearner(fixed), ToyImages(train_ways=5))
    features = PrototypicalNetworks(MLP(64, [8], 6), Classification())
    trainer = make_trainer()
    trainer.fit(MetaLearner(features, eval_steps=0, report_step=0), ToyImages(train_ways=5))
    assert trainer.global_step == 1
