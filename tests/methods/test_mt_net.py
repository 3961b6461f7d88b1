"""T-net and MT-net: what ties them to MAML, the learned metric, and the bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import vmap
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, MTNet
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def smooth(masked: bool, steps: int = 2, first_order: bool = False) -> MTNet:
    """A smooth net whose warps are not the identity and whose bits are not all alike."""
    method = MTNet(MLP(1, [8, 8], 1, activation="tanh"), Regression(), 0.05, steps, "mean", first_order, masked=masked).double()
    with torch.no_grad():
        for warp in method.warps:
            warp.add_(0.3 * torch.randn_like(warp))
    return method


def set_logits(method: MTNet, value: float) -> None:
    assert method.mask_logits is not None
    with torch.no_grad():
        for logits in method.mask_logits:
            logits.fill_(value)


def plain_maml(method: MTNet) -> MAML:
    return MAML(method.backbone, method.objective, method.inner_lr, method.inner_steps, method.reduction, method.first_order)


# ---- the identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["T-net", "MT-net with all bits 1"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_identity_warps_give_maml(
    downsample: str, first_order: bool, masked: bool, image_episodes: Callable[..., Episode]
) -> None:
    net = Conv4(1, 4, 3, 16, downsample).double()  # type: ignore[arg-type]
    method = MTNet(net, Classification(), 0.1, 2, "sum_over_shots", first_order, masked=masked).double()
    if masked:
        set_logits(method, 1e6)
    episodes = image_episodes(3, side=16)
    ours, theirs = MetaGradient(method)(episodes), MetaGradient(plain_maml(method))(episodes)
    torch.testing.assert_close((ours.loss, ours.logs), (theirs.loss, theirs.logs), **CLOSE)
    for name, expected in theirs.gradient.items():
        torch.testing.assert_close(ours.gradient[name], expected, **CLOSE)


def test_all_bits_one_is_the_t_net(sine_episodes: Callable[..., Episode]) -> None:
    method = smooth(True)
    set_logits(method, 1e6)
    t_net = smooth(False)
    t_net.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("mask_logits")})
    episodes = sine_episodes(4)
    ours, theirs = MetaGradient(method)(episodes), MetaGradient(t_net)(episodes)
    for name, expected in theirs.gradient.items():
        torch.testing.assert_close(ours.gradient[name], expected, **CLOSE)
    assert any(name.startswith("method.warps") for name in theirs.gradient)


def test_all_bits_zero_leaves_every_layer_alone(sine_episodes: Callable[..., Episode]) -> None:
    method = smooth(True)
    set_logits(method, -1e6)
    start, state = method.start(1), method.adapt(one(sine_episodes(1)).support, 3)
    assert all(torch.equal(start[name], state[name]) for name in start)


def test_a_step_moves_the_product_by_the_metric(sine_episodes: Callable[..., Episode]) -> None:
    """TW_new - TW = -alpha T T' grad_TW, and with bits -alpha T (m * T' grad_TW), for weights and biases."""
    support = one(sine_episodes(1)).support
    for masked in (False, True):
        method = smooth(masked, steps=1)
        before = {name: value.detach() for name, value in method.warped(method.start(1)).items()}
        after = method.warped(method.adapt(support))
        leaves = {name: value.clone().requires_grad_() for name, value in before.items()}
        loss = method.objective.loss(functional_call(method.backbone, leaves, (support.x,)), support.y)
        gradient = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        bits = method.masks(support) if masked else [torch.ones(len(warp)) for warp in method.warps]
        assert not masked or any(0 < mask.mean() < 1 for mask in bits)
        for layer, warp, mask in zip(method.layers, method.warps, bits, strict=True):
            for name in (f"{layer}.weight", f"{layer}.bias"):
                moved = torch.diag(mask.double()) @ warp.T @ gradient[name]
                torch.testing.assert_close(after[name] - before[name], -method.inner_lr * warp @ moved, **CLOSE)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_the_warp_is_a_one_by_one_convolution_of_each_layers_outputs(downsample: str) -> None:
    """Against hooks that apply T to every layer's output, the output layer's too, before the norm."""
    method = MTNet(Conv4(1, 4, 3, 16, downsample), Classification(), 0.1, 1, "mean").double()  # type: ignore[arg-type]
    with torch.no_grad():
        for warp in method.warps:
            warp.add_(0.3 * torch.randn_like(warp))
    x = torch.rand(6, 1, 16, 16, dtype=torch.float64)
    warped = method.predict(method.start(1), x)
    assert [name.split(".")[0] for name in method.layers] == ["convs"] * 4 + ["head"]
    for name, warp in zip(method.layers, method.warps, strict=True):
        layer = method.backbone.get_submodule(name)
        layer.register_forward_hook(
            lambda module, args, output, warp=warp: (
                linear(output, warp) if module is method.backbone.head else conv2d(output, warp[:, :, None, None])
            )
        )
    torch.testing.assert_close(warped, method.backbone(x), **CLOSE)


def test_pytorch_convolutions_are_warped_alike() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    method = MTNet(net, Classification(), 0.1, 1, "mean", frozen=(), masked=False).double()
    with torch.no_grad():
        method.warps[0].copy_(torch.randn(3, 3))
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    expected = net[2](torch.einsum("oc,nchw->nohw", method.warps[0], net[0](x)).flatten(1))
    torch.testing.assert_close(method.predict(method.start(1), x), expected, **CLOSE)


# ---- the meta-gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["T-net", "MT-net, its straight-through part left out"])
def test_meta_gradient_equals_finite_differences(masked: bool, steps: int, sine_episodes: Callable[..., Episode]) -> None:
    """With respect to weights, biases and warps; the bits' logits have no true derivative, and are checked below."""
    method, episodes = smooth(masked, steps), sine_episodes(3)
    meta_gradient = MetaGradient(method)
    gradient = meta_gradient(episodes).gradient
    params = dict(method.named_parameters())
    for _ in range(5):
        direction = {name: torch.randn_like(value) for name, value in params.items() if "mask_logits" not in name}
        slope = sum((gradient[f"method.{name}"] * d).sum() for name, d in direction.items())
        values = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for name, d in direction.items():
                    params[name].add_(sign * d)
                values.append(meta_gradient(episodes).loss)
                for name, d in direction.items():
                    params[name].sub_(sign * d)
        assert ((values[0] - values[1]) / 2e-5).item() == pytest.approx(float(slope), rel=1e-5)


def test_the_logits_gradient_is_that_of_the_soft_bits(sine_episodes: Callable[..., Episode]) -> None:
    """One step, W := W - alpha m * g: dL/dz = -alpha (grad_W L_q . g) s (1 - s), s the soft bit."""
    method, episode = smooth(True, steps=1), one(sine_episodes(1))
    assert method.mask_logits is not None
    found = torch.autograd.grad(method.meta_loss(episode)[0], list(method.mask_logits))
    start, state = method.start(1), {name: v.detach().requires_grad_() for name, v in method.adapt(episode.support).items()}

    def of(state: dict[str, Tensor], part: Examples) -> dict[str, Tensor]:
        loss = method.objective.loss(method.predict(state, part.x), part.y)
        return dict(zip(state, torch.autograd.grad(loss, list(state.values())), strict=True))

    inner, outer = of(start, episode.support), of(state, episode.query)
    level = [z.detach() for z in method.mask_logits]
    key_bits = method.masks(episode.support)
    for layer, z, bit, gradient in zip(method.layers, level, key_bits, found, strict=True):
        slope = torch.autograd.grad(bit.sum(), method.mask_logits[method.layers.index(layer)], retain_graph=True)[0]
        assert z.shape == slope.shape
        moved = sum((outer[name] * inner[name]).reshape(len(z), -1).sum(1) for name in (f"{layer}.weight", f"{layer}.bias"))
        torch.testing.assert_close(gradient, -method.inner_lr * moved * slope, **CLOSE)
        assert ((slope > 0) & (slope <= 0.25)).all()
    assert any(gradient.abs().max() > 1e-6 for gradient in found)


def test_warps_and_logits_are_meta_learned_and_not_adapted(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = smooth(True), sine_episodes(6)
    assert not any("warps" in name or "mask" in name for name in method.adapt(one(episodes).support))
    gradient = MetaGradient(method)(episodes).gradient
    learned = [name for name in gradient if "warps" in name or "mask_logits" in name]
    assert len(learned) == 6
    assert all(gradient[name].abs().max() > 1e-8 for name in learned)


# ---- the bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_a_bit_is_one_with_its_probability(logit: float, sine_episodes: Callable[..., Episode]) -> None:
    method = MTNet(MLP(1, [50], 1), Regression(), 0.1, 1, "mean")
    set_logits(method, logit)
    bits = torch.cat(vmap(method.masks)(sine_episodes(200).support), dim=1).detach()
    assert ((bits.abs() < 1e-6) | ((bits - 1).abs() < 1e-6)).all()
    expected = torch.sigmoid(torch.tensor(logit)).item()
    assert bits.mean().item() == pytest.approx(expected, abs=0.02)
    assert bits.std(0)[:50].mean() > 0.3  # tasks differ
    assert method.mask_probabilities()["layers.0"].mean().item() == pytest.approx(expected)


def test_the_bits_of_a_task_are_kept_through_its_inner_steps(sine_episodes: Callable[..., Episode]) -> None:
    method, support = smooth(True), one(sine_episodes(1)).support
    states = method.trajectory(support, 4)
    for layer, mask in zip(method.layers, method.masks(support), strict=True):
        moved = torch.stack([a[f"{layer}.bias"] != b[f"{layer}.bias"] for a, b in zip(states, states[1:], strict=False)])
        assert (moved == (mask > 0.5)).all()


def test_the_starting_probability_can_be_chosen() -> None:
    method = MTNet(MLP(1, [4], 1), Regression(), 0.1, 1, "mean", probability=0.9)
    assert all(p.mean().item() == pytest.approx(0.9) for p in method.mask_probabilities().values())
    t_net = MTNet(MLP(1, [4], 1), Regression(), 0.1, 1, "mean", masked=False)
    assert all((p == 1).all() for p in t_net.mask_probabilities().values())


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"temperature": 0.0}, r"temperature is 0.0; it must be > 0"),
        ({"probability": 1.0}, r"probability is 1.0; it must lie between 0 and 1"),
        ({"probability": 0.0}, r"probability is 0.0; it must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean"}
    MTNet(**right)
    with pytest.raises(ValueError, match=message):
        MTNet(**{**right, **wrong})
