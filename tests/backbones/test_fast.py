"""The fast implementation against the plain one: values and derivatives up to the third, and what it leaves to plain layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mamllit.backbones import BatchStatNorm, Conv4
from mamllit.backbones import fast as fast_layers
from mamllit.backbones.first_rows import normalised_by_first


def both(downsample: Any, channels: int = 2, side: int = 20, **settings: Any) -> tuple[Conv4, Conv4]:
    """A plain and a fast network with the same random parameters, float64."""
    plain = Conv4(channels, 3, 3, side, downsample, **settings).double()
    fast = Conv4(channels, 3, 3, side, downsample, implementation="fast", **settings).double()
    for value in plain.parameters():
        nn.init.normal_(value)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(found: Any, expected: Any) -> None:
    """Up to rounding of the largest number: the bias before a norm has a gradient of zero, or of rounding errors."""
    scale = max(value.abs().max().item() for value in expected)
    torch.testing.assert_close([value / scale for value in found], [value / scale for value in expected], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [False, True], ids=["beta alone", "gamma too"])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_fast_is_plain_to_the_third_derivative(downsample: Any, scale: bool, channels: int) -> None:
    x, results = random(4, channels, 20, 20), []
    for net in both(downsample, channels, norm_scale=scale):
        inputs = [x.clone().requires_grad_(), *net.parameters()]
        derivatives = [[output := net(inputs[0])], [output.square().sum()]]
        for order in range(3):
            loss = sum(value.square().sum() for value in derivatives[-1])
            derivatives.append(list(torch.autograd.grad(loss, inputs, create_graph=order < 2)))
        results.append(derivatives)
    for plain, fast in zip(*results, strict=True):
        close(fast, plain)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_fast_is_plain_over_tasks_with_weights_of_their_own(downsample: Any) -> None:
    """The second step of an inner loop, vectorised over tasks, and its derivative by what all tasks share."""
    nets, images = both(downsample, 1, 16), random(3, 4, 1, 16, 16)
    steps = {name: random(3, *value.shape) for name, value in nets[0].named_parameters()}
    results = []
    for net in nets:
        shared = dict(net.named_parameters())

        def loss(params: dict[str, Tensor], x: Tensor, net: nn.Module = net) -> Tensor:
            return functional_call(net, params, (x,)).square().mean()

        def of_gradient(shared: dict[str, Tensor], step: dict[str, Tensor], x: Tensor) -> Tensor:
            own = {name: value + 0.1 * step[name] for name, value in shared.items()}
            return sum(value.square().sum() for value in grad(loss)(own, x).values())  # type: ignore[return-value, misc]

        results.append(list(vmap(grad(of_gradient), (None, 0, 0))(shared, steps, images).values()))
    close(results[1], results[0])


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_a_layer_of_another_kind_runs_as_it_is(downsample: Any) -> None:
    nets, x = both(downsample), random(4, 2, 20, 20)
    for net in nets:
        net.norms[1] = nn.InstanceNorm2d(3)
        net.convs[2] = nn.Conv2d(3, 3, 3, 1 if downsample == "max_pool" else 2, 1)
    nets[1].load_state_dict(nets[0].double().state_dict())
    close([nets[1].double()(x)], [nets[0](x)])


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_statistics_of_the_first_rows(downsample: Any, scale: bool) -> None:
    found, x = [], random(5, 2, 20, 20)
    for net in both(downsample, norm_scale=scale):
        net = normalised_by_first(net, 3)
        out = net(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))])
    close(found[1], found[0])


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_under_autocast_the_norm_is_float32(downsample: Any) -> None:
    plain, fast = (net.float() for net in both(downsample))
    x = torch.rand(4, 2, 20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fast.features(x), plain.features(x)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_hook_on_a_convolution_is_called() -> None:
    plain, fast = both("stride")
    seen: list[Tensor] = []
    for net in (plain, fast):
        net.convs[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        net(torch.ones(4, 2, 20, 20, dtype=torch.float64) * torch.arange(20))
    close([seen[1]], [seen[0]])


def test_every_parameter_has_a_gradient() -> None:
    """Also the biases that the norms take away: DDP waits for each."""
    _, fast = both("max_pool")
    fast(random(4, 2, 20, 20)).sum().backward()
    assert [name for name, value in fast.named_parameters() if value.grad is None] == []
    assert isinstance(fast.norms[0], BatchStatNorm)


def test_norm_and_pooling_are_one_operator_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = fast_layers.pooled_norm
    monkeypatch.setattr(fast_layers, "pooled_norm", lambda *args: calls.append(1) or real(*args))
    x = random(4, 2, 20, 20)
    plain, fast = both("max_pool")
    plain(x), normalised_by_first(fast, 3)(x), both("max_pool", norm_scale=True)[1](x), both("stride")[1](x)
    assert calls == []
    fast(x)
    assert len(calls) == 4
