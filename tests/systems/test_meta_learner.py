"""MetaLearner under a real Trainer on the CPU: the gradient that arrives, Lightning's own services, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.nn.functional import cross_entropy

from mamllit.backbones import MLP
from mamllit.core.episode import EpisodeBatch
from mamllit.data import SineDataModule
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML
from mamllit.objectives import Classification, Regression
from mamllit.systems import MetaLearner

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from short_fits import flat, make_data, make_method, make_trainer
from toy_images import ToyImages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1.0)


def sgd_slow(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.001)


def flat_gradient(method: MAML, batch: EpisodeBatch) -> Tensor:
    """The meta-gradient of one meta-batch, as the engine computes it."""
    return torch.cat([value.reshape(-1) for value in MetaGradient(method)(batch.episodes).gradient.values()])


def meta_batch(data: SineDataModule, number: int) -> EpisodeBatch:
    first = number * data.meta_batch_size
    return data.build(data.draw(data.seed, "train", data.shots, data.queries, first, data.meta_batch_size))


class Recorder(L.Callback):
    """Notes the episode numbers of every batch, and the gradients after every backward pass."""

    def __init__(self) -> None:
        self.first_episode: list[int] = []
        self.gradient: list[Tensor] = []
        self.loss: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: EpisodeBatch, i: int) -> None:
        self.first_episode.append(int(batch.number[0]))

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.gradient.append(torch.cat([value.grad.reshape(-1).clone() for value in module.method.parameters()]))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int) -> None:
        self.loss.append(float(outputs["loss"]))


# ---- the gradient and Lightning's services -------------------------------------------------------------------------


def test_backward_hands_the_engines_gradient_to_the_parameters() -> None:
    method, data, recorder = make_method(), make_data(), Recorder()
    expected = MetaGradient(make_method())(meta_batch(data, 0).episodes)
    make_trainer(callbacks=[recorder]).fit(MetaLearner(method), data)
    torch.testing.assert_close(
        recorder.gradient[0], torch.cat([value.reshape(-1) for value in expected.gradient.values()]), rtol=0, atol=0
    )
    assert recorder.gradient[0].norm() > 0.01
    assert recorder.loss[0] == expected.loss.item()


def test_a_plain_run_ends_with_the_weights_of_a_vectorised_one() -> None:
    ends = []
    for execution in ("plain", "vmap"):
        torch.manual_seed(0)
        system = MetaLearner(make_method(), execution=execution, compile=False)  # type: ignore[arg-type]
        recorder = Recorder()
        make_trainer(max_steps=3, callbacks=[recorder]).fit(system, make_data())
        ends.append(torch.cat([value.detach().flatten() for value in system.method.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("execution", ["loop", 3])
def test_the_execution_asked_for_is_used(execution: Any) -> None:
    recorder, system = Recorder(), MetaLearner(make_method(), execution=execution)
    make_trainer(callbacks=[recorder]).fit(system, make_data())
    assert system.meta_gradient.execution == execution
    expected = flat_gradient(make_method(), meta_batch(make_data(), 0))
    torch.testing.assert_close(recorder.gradient[0], expected, rtol=1e-4, atol=1e-6)


def test_frozen_meta_parameters_get_no_gradient_and_the_others_theirs() -> None:
    method, data = make_method(), make_data()
    method.backbone.layers[0].requires_grad_(False)
    before = method.backbone.layers[0].weight.clone()
    expected = MetaGradient(method)(meta_batch(data, 0).episodes).gradient
    start = {f"method.{name}": value.detach().clone() for name, value in method.named_parameters()}
    make_trainer().fit(MetaLearner(method, sgd), data)
    assert torch.equal(method.backbone.layers[0].weight, before)
    for name, value in method.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.detach(), start[f"method.{name}"] - expected[f"method.{name}"])


def test_accumulated_gradients_are_averaged() -> None:
    method, data = make_method(), make_data()
    start = flat(method)
    mean = (flat_gradient(method, meta_batch(data, 0)) + flat_gradient(method, meta_batch(data, 1))) / 2
    make_trainer(accumulate_grad_batches=2).fit(MetaLearner(method, sgd), data)
    torch.testing.assert_close(start - flat(method), mean, rtol=1e-4, atol=1e-6)


def test_the_gradient_norm_can_be_clipped() -> None:
    method, data = make_method(), make_data()
    start, gradient = flat(method), flat_gradient(method, meta_batch(data, 0))
    assert gradient.norm() > 0.5
    make_trainer(gradient_clip_val=0.5).fit(MetaLearner(method, sgd), data)
    torch.testing.assert_close(start - flat(method), 0.5 * gradient / gradient.norm(), rtol=1e-4, atol=1e-6)


def test_gradient_elements_can_be_clipped_as_the_paper_does_on_mini_imagenet() -> None:
    method, data = make_method(), make_data()
    start, gradient = flat(method), flat_gradient(method, meta_batch(data, 0))
    assert (gradient.abs() > 0.05).any()
    make_trainer(gradient_clip_val=0.05, gradient_clip_algorithm="value").fit(MetaLearner(method, sgd), data)
    torch.testing.assert_close(start - flat(method), gradient.clamp(-0.05, 0.05), rtol=1e-4, atol=1e-6)


def test_clipping_acts_on_the_papers_gradient() -> None:
    """The element-wise clip of cbfinn/maml: on the mean over the tasks of d(sum of the query losses / K), before the optimiser.

    Worked out with plain autograd and no engine: K = 2 shots, 3 ways, 2 queries per class, one inner step of 0.5 on the
    support losses' sum / K, with a linear classifier.
    """
    data = ToyImages(shots=2, queries=2)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    method = MAML(net, Classification(), 0.5, 1, "sum_over_shots")
    start = [value.detach().clone() for value in net.parameters()]
    data.setup("fit")
    total = [torch.zeros_like(value) for value in start]
    for i in range(4):
        (sx, sy), (qx, qy) = ((part.x[i].flatten(1), part.y[i]) for part in meta_batch(data, 0).episodes)
        weight, bias = (value.clone().requires_grad_() for value in start)
        support = cross_entropy(sx @ weight.T + bias, sy, reduction="sum") / 2
        dw, db = torch.autograd.grad(support, (weight, bias), create_graph=True)
        outer = cross_entropy(qx @ (weight - 0.5 * dw).T + bias - 0.5 * db, qy, reduction="sum") / 2
        total = [a + g / 4 for a, g in zip(total, torch.autograd.grad(outer, (weight, bias)), strict=True)]
    bound = float(total[0].abs().median())
    assert any((g.abs() > bound).any() for g in total) and any((g.abs() < bound).any() for g in total)
    make_trainer(gradient_clip_val=bound, gradient_clip_algorithm="value").fit(MetaLearner(method, sgd), data)
    for value, before, g in zip(net.parameters(), start, total, strict=True):
        torch.testing.assert_close(before - value.detach(), g.clamp(-bound, bound), rtol=1e-4, atol=1e-5)


def test_the_learning_rate_schedule_steps_once_per_meta_update() -> None:
    def halve(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def adam(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.008)

    trainer = make_trainer(max_steps=3, accumulate_grad_batches=2)
    trainer.fit(MetaLearner(make_method(), adam, halve), make_data())
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(("monitor", "looks"), [("val/mse", 2), ("train/meta_loss", 3)])
def test_a_scheduler_that_waits_for_a_plateau_looks_when_its_monitor_is_new(monitor: str, looks: int) -> None:
    """Six steps, a validation every three, training values every two; nothing is ever good enough."""

    def wait(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer, monitor=monitor, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")

    trainer = make_trainer(max_steps=6, val_check_interval=3, limit_val_batches=1)
    trainer.fit(MetaLearner(make_method(), sgd_slow, wait, log_every=2), make_data())
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.5 ** (looks - 1))  # the first value is the best so far


def test_a_scheduler_without_a_monitor_is_refused() -> None:
    learner = MetaLearner(make_method(), sgd, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau has nothing to monitor; use .* monitor: val/mse"):
        learner.configure_optimizers()


def test_the_default_optimizer_is_adam_at_a_constant_rate() -> None:
    optimizer = MetaLearner(make_method()).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_training_values_are_logged_every_so_many_steps() -> None:
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            seen.append(sorted(trainer.logged_metrics))

    recorder, trainer = Recorder(), make_trainer(max_steps=3)
    trainer.callbacks += [recorder, Watch()]
    trainer.fit(MetaLearner(make_method(), log_every=2), make_data())
    logged = ["train/meta_loss", "train/mse", "trainer/episodes"]
    assert seen == [[], logged, logged]
    assert trainer.logged_metrics["train/meta_loss"].item() == pytest.approx(recorder.loss[1])


def test_a_resumed_run_takes_up_the_stream_of_episodes_and_ends_at_the_same_parameters(tmp_path: Path) -> None:
    """Four updates of two meta-batches each, against two, a checkpoint, and two more."""
    whole, recorder = make_method(), Recorder()
    make_trainer(4, accumulate_grad_batches=2, callbacks=[recorder]).fit(MetaLearner(whole), make_data())
    assert recorder.first_episode == [0, 4, 8, 12, 16, 20, 24, 28]

    first = make_trainer(2, accumulate_grad_batches=2)
    first.fit(MetaLearner(make_method()), make_data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, recorder = make_method(), Recorder()
    second = make_trainer(4, accumulate_grad_batches=2, callbacks=[recorder])
    second.fit(MetaLearner(resumed), make_data(), ckpt_path=tmp_path / "half.ckpt")
    assert recorder.first_episode == [16, 20, 24, 28]
    torch.testing.assert_close(flat(resumed), flat(whole), rtol=0, atol=0)


@pytest.mark.parametrize(("setting", "steps", "compiled"), [(True, 1, True), (False, 1, False), ("auto", 1, False)])
def test_the_compile_setting_reaches_the_engine(
    setting: Any, steps: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    system = MetaLearner(make_method(), compile=setting)
    make_trainer(steps).fit(system, make_data())
    assert system.meta_gradient.compiled is compiled
    assert len(asked) == int(compiled)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [lambda t, s, d: t.fit(s, d), lambda t, s, d: t.test(s, d)], ids=["fit", "test"])
def test_outputs_that_differ_from_the_ways_are_refused(run: Callable[..., None]) -> None:
    system = MetaLearner(make_method(outputs=5))
    with pytest.raises(ValueError, match=r"the network has 5 outputs \(out_features\), .* of the data has 1 ways"):
        run(make_trainer(), system, make_data())


def test_a_backbone_that_does_not_tell_its_outputs_is_not_checked() -> None:
    method = MAML(torch.nn.Sequential(torch.nn.Linear(1, 1)), Regression(), 0.01, 1, "mean")
    make_trainer().fit(MetaLearner(method), make_data())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"report_step": 4, "eval_steps": 3}, r"report_step is 4; it must lie between 0 and eval_steps, which is 3"),
        ({"report_step": -1}, r"report_step is -1; it must lie between 0 and eval_steps, which is 10"),
        ({"log_every": 0}, r"log_every is 0; it must be >= 1"),
        (
            {"batch_norm": []},
            r"batch_norm is \[\]; it must list some of \['transductive', 'inductive', 'population'\], each once",
        ),
        ({"batch_norm": ["none"]}, r"batch_norm is \['none'\]; it must list some of"),
        ({"batch_norm": ["inductive"] * 2}, r"batch_norm is \['inductive', 'inductive'\]; it must list some of"),
        (
            {"execution": "plain", "compile": True},
            r"execution is 'plain', but compile is True .*execution: loop",
        ),
        ({"execution": "plain", "memory": "recompute"}, r"execution is 'plain', but compile is 'auto' and memory 'recompute'"),
        ({"execution": 0}, r"execution is 0; it must be 'auto', 'vmap', 'loop' or a chunk size >= 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    method = MAML(MLP(4, [3], 2), Classification(), 0.1, 1, "mean")
    with pytest.raises(ValueError, match=message):
        MetaLearner(method, **wrong)


def test_evaluation_without_an_episodic_datamodule_says_what_to_pass() -> None:
    learner = MetaLearner(make_method())
    data = make_data()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer = trainer
    with pytest.raises(TypeError, match="evaluates on the fixed episodes of an EpisodicDataModule, but the Trainer has None"):
        trainer.test(learner, data.test_dataloader(), verbose=False)
