"""The parameter groups that a method asks for reach the optimiser, and Lightning trains them."""

from typing import ClassVar

import lightning as L
import pytest
import torch

from mamllit.backbones import MLP
from mamllit.data import SineDataModule
from mamllit.methods import MAML, MetaSGD
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner
from mamllit.systems.groups import parameter_groups


def meta_sgd() -> MetaSGD:
    return MetaSGD(MLP(1, [4], 1), Regression(), "mean")


def test_a_method_without_wishes_has_one_group() -> None:
    method = MAML(MLP(1, [4], 1), Regression(), 0.1, 1, "mean")
    (group,) = parameter_groups(method)
    assert list(group) == ["params"]
    assert [id(value) for value in group["params"]] == [id(value) for value in method.parameters()]


def test_named_parameters_get_their_own_settings_and_none_is_lost() -> None:
    method = meta_sgd()
    optimizer = torch.optim.AdamW(parameter_groups(method), lr=0.1, weight_decay=0.5)
    weights, rates = optimizer.param_groups
    assert (weights["weight_decay"], rates["weight_decay"]) == (0.5, 0.0)
    assert {id(value) for value in weights["params"]} == {id(value) for value in method.backbone.parameters()}
    assert {id(value) for value in rates["params"]} == {id(value) for value in method.rates}


def test_a_pattern_that_matches_nothing_makes_no_group() -> None:
    class Other(MAML):
        optimizer_groups: ClassVar = {"nothing.*": {"weight_decay": 0.0}}

    assert len(parameter_groups(Other(MLP(1, [4], 1), Regression(), 0.1, 1, "mean"))) == 1


def test_a_parameter_in_two_groups_is_refused() -> None:
    class Other(MetaSGD):
        optimizer_groups: ClassVar = {"rates.*": {"weight_decay": 0.0}, "*.0": {"lr": 1.0}}

    with pytest.raises(ValueError, match=r"rates\.0 of Other matches the optimizer_groups \['rates\.\*', '\*\.0'\]"):
        parameter_groups(Other(MLP(1, [4], 1), Regression(), "mean"))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
def test_weight_decay_pulls_the_weights_and_leaves_the_step_sizes_alone() -> None:
    """At meta learning rate 1 and decay 1, SGD takes a weight to minus its gradient, and a step size to itself less its own."""
    method = meta_sgd()
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    data = SineDataModule(meta_batch_size=4, seed=0)
    learner = MetaLearner(method, lambda params: torch.optim.SGD(params, lr=1.0, weight_decay=1.0))
    batch = data.build(data.draw(0, "train", 10, 10, 0, 4))
    gradient = learner.meta_gradient(batch.episodes).gradient
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        max_steps=1, max_epochs=-1, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, data)
    for name, value in method.named_parameters():
        kept = before[name] if name.startswith("rates") else torch.zeros_like(value)
        torch.testing.assert_close(value.detach(), kept - gradient[f"method.{name}"], rtol=1e-4, atol=1e-5)
