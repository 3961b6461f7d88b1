"""Mixed precision: what stays in float32, and how far the meta-gradient is from float32's; the Trainer's plugins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from toy_images import ToyImages

from mamllit.backbones import MLP, BatchStatNorm, Conv4, SameConv2d
from mamllit.core.episode import Episode
from mamllit.core.tree import item
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

HALVES = [torch.bfloat16, torch.float16]
NETS = {
    "stride": lambda: Conv4(1, 8, 3, 16, "stride", implementation="fast"),
    "max_pool": lambda: Conv4(1, 8, 3, 16, "max_pool", implementation="fast"),
    "mlp": lambda: MLP(256, [16, 16], 3, norm=True),
}


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NETS)
def test_the_meta_gradient_is_float32_and_near_float32_s(
    name: str, dtype: torch.dtype, image_episodes: Callable[..., Episode]
) -> None:
    """Near: an untrained network that is normalised by six images of noise multiplies what rounding leaves."""
    method = MAML(NETS[name](), Classification(), 0.01, 2, "sum_over_shots")
    episodes = image_episodes(4, ways=3, shots=2, side=16, dtype=torch.float32)
    expected = MetaGradient(method)(episodes)
    with torch.autocast("cpu", dtype):
        found = MetaGradient(method)(episodes)
    assert all(value.dtype == torch.float32 for value in (found.loss, *found.gradient.values()))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)
    likeness = torch.cosine_similarity(flat(found.gradient), flat(expected.gradient), dim=0)
    assert (0.7 if dtype == torch.bfloat16 else 0.9) < likeness < 1 - 1e-7  # nearly, and not float32 under another name


@pytest.mark.parametrize("dtype", HALVES)
def test_fast_weights_stay_in_float32(dtype: torch.dtype, image_episodes: Callable[..., Episode]) -> None:
    """A step of 1e-6 is below what 8 bits can add to a weight, and arrives."""
    method = MAML(NETS["stride"](), Classification(), 1e-6, 1, "sum_over_shots", frozen=())
    episodes = image_episodes(1, ways=3, side=16, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        before, after = method.trajectory(item(episodes.support, 0), 1)
    for name, value in after.items():
        assert value.dtype == torch.float32
        if name.endswith("weight"):
            change = value - before[name]
            assert 0 < change.abs().max() < 1e-3


def test_the_norm_s_statistics_are_float32_s() -> None:
    x = (100 + torch.randn(64, 3, 4, 4)).to(torch.bfloat16)  # bfloat16 has steps of 0.5 there
    norm = BatchStatNorm(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x.float()))


@pytest.mark.parametrize("implementation", ["plain", "fast"])
def test_the_convolution_runs_in_the_low_precision_and_its_weight_s_gradient_does_not(implementation: Any) -> None:
    layer = SameConv2d(2, 4, implementation=implementation, add_bias=False)
    x = torch.rand(3, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert torch.equal(output, output.to(torch.bfloat16).to(output.dtype))
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "used"), [("bf16-mixed", "bf16-mixed"), ("16-mixed", "bf16-mixed")])
def test_the_trainer_s_plugin_is_obeyed_in_training_and_test(precision: str, used: str, tmp_path: Path) -> None:
    """Lightning runs 16-mixed as bf16-mixed on a CPU, and says so."""
    seen: list[torch.dtype | None] = []
    net = MLP(64, [8], 3, norm=True)

    def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if inputs[0].dtype != torch.float64:  # that is a trial of what a prediction depends on, made outside autocast
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    net.layers[0].register_forward_hook(see)
    learner = MetaLearner(MAML(net, Classification(), 0.1, 1, "mean"), eval_steps=2)
    trainer = L.Trainer(
        max_steps=2, precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False,  # type: ignore[arg-type]
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    assert trainer.precision == used
    trainer.fit(learner, ToyImages())
    training = set(seen)
    seen.clear()
    trainer.test(learner, ToyImages(), verbose=False)
    assert training == set(seen) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in learner.parameters())
    assert learner.summaries["standard[5]"].mean.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), ("16-true", torch.float16)]
)
@pytest.mark.parametrize("name", ["stride", "mlp"])
def test_true_precision_with_images(precision: str, dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    """The data modules build images of float32 whatever the Trainer's precision; the network's decides."""
    net = Conv4(1, 4, 3, 8, "stride") if name == "stride" else MLP(64, [8], 3, norm=True)
    # not Adam: its eps of 1e-8 is zero in float16
    method = MAML(net, Classification(), 0.1, 1, "mean")
    learner = MetaLearner(method, lambda params: torch.optim.SGD(params, lr=0.1), eval_steps=1)
    trainer = L.Trainer(
        max_steps=2, precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False,  # type: ignore[arg-type]
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    before = [value.clone() for value in learner.parameters()]
    trainer.fit(learner, ToyImages())
    assert all(value.dtype == dtype for value in learner.parameters())
    assert any(not torch.equal(a.to(dtype), b) for a, b in zip(before, learner.parameters(), strict=True))
    trainer.test(learner, ToyImages(), verbose=False)
    assert learner.summaries["standard[5]"].mean.isfinite().all()
