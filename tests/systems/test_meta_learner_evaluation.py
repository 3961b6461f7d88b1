"""MetaLearner's validation and test under a real Trainer on the CPU: what they report, and what they leave alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mamllit.backbones import MLP
from mamllit.core.metrics import EpisodeMetric
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import Execution
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


def test_a_short_fit_lowers_the_sine_loss_after_adaptation() -> None:
    torch.manual_seed(0)
    method = MAML(MLP(1, [40, 40], 1), Regression(), 0.01, 1, "sum_over_shots")
    system = MetaLearner(method, lambda params: torch.optim.Adam(params, lr=0.02), eval_steps=1)
    data = make_data(meta_batch_size=25, val_episodes=100, eval_batch_size=100)
    trainer = make_trainer(200, limit_val_batches=1.0, val_check_interval=200, num_sanity_val_steps=0)
    trainer.validate(system, data, verbose=False)
    before = system.summaries["val"].mean
    trainer.fit(system, data)
    after = system.summaries["val"].mean
    assert after[1] < 0.6 * before[1]
    assert after[1] < 0.8 * after[0]  # and the step of adaptation helps


def test_validation_runs_inside_fit_and_reports_the_headline() -> None:
    system, data = MetaLearner(make_method(), eval_steps=3, report_step=2), make_data()
    trainer = make_trainer(4, limit_val_batches=1.0, val_check_interval=2)
    trainer.fit(system, data)
    summary = system.summaries["val"]
    assert summary.episodes == 20
    metrics = trainer.callback_metrics
    assert metrics["val/mse"].item() == pytest.approx(summary.mean[2].item())
    for steps in range(4):
        for field in ("mean", "ci95", "median", "diverged"):
            value = getattr(summary, field)[steps].item()
            assert metrics[f"val/mse_step{steps}_{field}"].item() == pytest.approx(value)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_test_summarises_every_evaluation_set(inference_mode: bool) -> None:
    """torch.func.grad differentiates in inference mode too, so Lightning's default does no harm."""
    method, data = make_method(), make_data()
    system = MetaLearner(method, eval_steps=2)
    trainer = make_trainer(inference_mode=inference_mode)
    trainer.test(system, data, verbose=False)
    sets = data.evaluation_sets("test")
    assert list(system.summaries) == [evaluation.name for evaluation in sets]
    assert "standard[12]/20-shot" in system.summaries
    for evaluation in sets:
        batch = data.episodes(evaluation)
        metric = EpisodeMetric()
        metric.update(batch.number, evaluate(method, batch.episodes, 2).detach())
        expected, got = metric.summary(), system.summaries[evaluation.name]
        assert got.episodes == 12
        torch.testing.assert_close(list(got[:4]), list(expected[:4]), rtol=1e-5, atol=1e-6)
        assert (got.mean[0] - got.mean[2]).abs() > 1e-3
        name = f"test/{evaluation.name}/mse_step2_mean"
        assert trainer.callback_metrics[name].item() == pytest.approx(got.mean[2].item())


def make_classifier() -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(64, [6, 5], 3, norm=True), Classification(), 0.5, 1, "sum_over_shots")


@pytest.mark.parametrize("asked", [["transductive", "inductive"], ["inductive", "transductive"], ["inductive"]])
def test_a_test_reports_each_kind_of_batch_norm_from_the_same_episodes(asked: list[str]) -> None:
    method, data = make_classifier(), ToyImages()
    system, trainer = MetaLearner(method, eval_steps=2, batch_norm=asked), make_trainer()
    trainer.test(system, data, verbose=False)
    (evaluation,) = data.evaluation_sets("test")
    names = {"transductive": evaluation.name, "inductive": f"{evaluation.name}/inductive"}
    assert list(system.summaries) == [names[norm] for norm in asked]
    for norm in asked:
        values = evaluate(method, data.episodes(evaluation).episodes, 2, inductive=norm == "inductive").double()
        torch.testing.assert_close(system.per_episode[names[norm]][1], values)
        logged = trainer.callback_metrics[f"test/{names[norm]}/accuracy_step2_mean"]
        assert logged.item() == pytest.approx(values[:, 2].mean().item())
    if len(asked) == 2:
        assert (system.per_episode[names["transductive"]][1] != system.per_episode[names["inductive"]][1]).any()


class Rows(nn.Module):
    """A recurrent net over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.net(x.flatten(1, 2))[0][:, -1])
        return output


def foreign() -> nn.Module:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.filterwarnings("ignore:PyTorch's vmap")
@pytest.mark.parametrize(("make", "names"), [(foreign, ["standard[5]", "standard[5]/inductive"]), (Rows, ["standard[5]"])])
@pytest.mark.parametrize("execution", ["auto", "loop", 2])
def test_anybody_s_network_is_trained_validated_and_tested(
    make: Callable[[], nn.Module], names: list[str], execution: Execution
) -> None:
    """PyTorch's batch norm has both readings; a recurrent net, which `vmap` does not run, gets through every stage."""
    torch.manual_seed(0)
    method = MAML(make(), Classification(), 0.5, 1, "sum_over_shots")
    system, trainer = MetaLearner(method, eval_steps=1, execution=execution), make_trainer(max_steps=2, limit_val_batches=1)
    trainer.fit(system, ToyImages())
    trainer.validate(system, ToyImages(), verbose=False)
    trainer.test(system, ToyImages(), verbose=False)
    assert list(system.summaries) == ["val", *names]
    assert system.transductive == (len(names) == 2)
    assert not method.transductive  # by the names of its classes
    assert all(value.mean.isfinite().all() for value in system.summaries.values())


def test_validation_is_transductive_alone() -> None:
    method, data = make_classifier(), ToyImages()
    system = MetaLearner(method, eval_steps=2, batch_norm=["inductive"])
    make_trainer(limit_val_batches=1.0).validate(system, data, verbose=False)
    assert list(system.summaries) == ["val"]
    values = evaluate(method, data.episodes(data.evaluation_sets("val")[0]).episodes, 2)
    torch.testing.assert_close(system.per_episode["val"][1], values.double())


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_every_stage_keeps_freed_memory(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("mamllit.systems.episodic.prepare", lambda device: calls.append(device.type))
    getattr(make_trainer(limit_val_batches=1), stage)(MetaLearner(make_method(), eval_steps=1), datamodule=make_data())
    assert calls


def test_without_batch_norm_there_is_one_reading() -> None:
    system = MetaLearner(make_method(), eval_steps=1)
    make_trainer().test(system, make_data(test_shots=[5], protocols=["paper"]), verbose=False)
    assert [(reading.name, reading.batch_norm) for reading in system.readings] == [("paper[12]", None)]


def test_evaluation_changes_neither_parameters_nor_gradients() -> None:
    method = make_method()
    before = flat(method)
    make_trainer().test(MetaLearner(method, eval_steps=1), make_data(), verbose=False)
    assert torch.equal(flat(method), before)
    assert all(value.grad is None for value in method.parameters())


def test_diverged_episodes_are_those_above_the_bound() -> None:
    system = MetaLearner(make_method(), eval_steps=1, diverged_above=3.0)
    data = make_data()
    make_trainer(limit_val_batches=1.0).validate(system, data, verbose=False)
    batch = data.episodes(data.evaluation_sets("val")[0])
    values = evaluate(system.method, batch.episodes, 1)
    share = (values > 3.0).double().mean(0)
    assert 0 < share[0] < 1
    torch.testing.assert_close(system.summaries["val"].diverged, share)
