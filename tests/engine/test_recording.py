"""The back end that records: which sums it joins, and that the joint gradient is the sum."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mamllit.backbones import Conv4
from mamllit.core.episode import Episode
from mamllit.engine import recording
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.engine.recording import call_directly, drop_identities, join_sums, recorded
from mamllit.kernels.conv import kernels as conv_kernels
from mamllit.kernels.conv.convolution import conv, conv_input_grad_op, conv_op
from mamllit.methods import MAML
from mamllit.objectives import Classification

SUM = torch.ops.mamllit.conv_input_grad_sum.default
ONE = torch.ops.mamllit.conv_input_grad.default


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def parts(tasks: tuple[int, ...] = (3,)) -> tuple[Tensor, ...]:
    """Two gradients [T, n, 3, 3, O] and weights [T, O, C, 3, 3], the second of another number of filters."""
    return random(*tasks, 2, 3, 3, 4), random(*tasks, 4, 2, 3, 3), random(*tasks, 2, 3, 3, 5), random(*tasks, 5, 2, 3, 3)


def added(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return conv_input_grad_op(a, u, 2, True, 6, 6) + conv_input_grad_op(b, v, 2, True, 6, 6)


def targets(function: Callable[..., object], *inputs: Tensor) -> list[object]:
    """What a graph of the function calls after its sums were joined."""
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    join_sums(traced.graph)
    traced.recompile()
    return [node.target for node in traced.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("tasks", [(), (3,)], ids=["one task", "tasks"])
@pytest.mark.parametrize("limit", [-1, 10**9], ids=["library", "patches"])
def test_the_joint_gradient_is_the_sum(tasks: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_kernels, "PATCH_BYTES", limit)
    monkeypatch.setattr(conv_kernels, "BLOCK_BYTES", 2**12)
    inputs = parts(tasks)
    traced = make_fx(added)(*inputs)
    assert join_sums(traced.graph) == 1
    traced.recompile()
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [SUM]
    torch.testing.assert_close(traced(*inputs), added(*inputs), rtol=1e-12, atol=1e-12)
    (fake,) = (node for node in traced.graph.nodes if node.target is SUM)
    assert fake.meta["val"].shape == added(*inputs).shape


def test_permutations_that_change_nothing_go_unless_they_are_returned() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x.permute(0, 1) + y.permute(1, 0), y.permute(0, 1)

    x, y = random(2, 2), random(2, 2)
    traced = make_fx(function)(x, y)
    drop_identities(traced.graph)
    traced.recompile()
    permutations = [node.args[1] for node in traced.graph.nodes if node.target is torch.ops.aten.permute.default]
    assert sorted(permutations) == [[0, 1], [1, 0]]
    torch.testing.assert_close(traced(x, y), function(x, y))


def test_detaching_goes_unless_it_is_returned() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.detach() * 2, x.sin().detach()

    traced = make_fx(function)(random(2))
    drop_identities(traced.graph)
    traced.recompile()
    kept = [node for node in traced.graph.nodes if node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default)]
    assert len(kept) == 1
    x = random(2)
    torch.testing.assert_close(traced(x), function(x))


def test_operators_are_called_as_functions_with_the_same_result() -> None:
    def function(x: Tensor, u: Tensor) -> Tensor:
        return conv_op(x, u, 2, True).sin()

    x, u = random(3, 2, 6, 6, 2), random(3, 4, 2, 3, 3)
    traced = make_fx(function)(x, u)
    call_directly(traced.graph)
    traced.recompile()
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [conv_kernels.conv, torch.ops.aten.sin.default]
    assert torch.equal(traced(x, u), function(x, u))


def test_what_is_used_elsewhere_or_differs_is_left_alone() -> None:
    a, u, b, v = parts()

    def used_twice(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        one = conv_input_grad_op(a, u, 2, True, 6, 6)
        return one, one + conv_input_grad_op(b, v, 2, True, 6, 6)

    def doubled(a: Tensor, u: Tensor) -> Tensor:
        one = conv_input_grad_op(a, u, 2, True, 6, 6)
        return one + one

    def spread(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return conv_input_grad_op(a, u, 2, True, 6, 6) + conv_input_grad_op(b[:1], v[:1], 2, True, 6, 6)

    def other_stride(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return conv_input_grad_op(a, u, 2, True, 6, 6) + conv_input_grad_op(b, v, 2, False, 6, 6)[..., :6, :6, :]

    def scaled(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
        one, two = conv_input_grad_op(a, u, 2, True, 6, 6), conv_input_grad_op(b, v, 2, True, 6, 6)
        return torch.add(one, two, alpha=2)

    for function in (used_twice, spread, other_stride, scaled):
        found = targets(function, a, u, b, v)
        assert SUM not in found, function
        assert found.count(ONE) == 2
    assert SUM not in targets(doubled, a, u)


@pytest.mark.slow
def test_a_step_with_sums_joined_is_the_step(image_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three inner steps, in float64: every layer but the first has sums to join, and the gradient stays."""
    joined = []

    def counted(graph: torch.fx.Graph) -> int:
        joined.append(join_sums(graph))
        return joined[-1]

    monkeypatch.setattr(recording, "join_sums", counted)
    method = MAML(Conv4(1, 4, 3, 28, "stride", implementation="fast").double(), Classification(), 0.1, 3, "mean")
    episodes = image_episodes(3, side=28)
    plain, replayed = MetaGradient(method)(episodes), MetaGradient(method, compiled=True)(episodes)
    assert sum(joined) >= 3
    torch.testing.assert_close(replayed.loss, plain.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(replayed.gradient, plain.gradient, rtol=1e-9, atol=1e-9)


def test_gradients_pass_through_what_is_recorded() -> None:
    x, weight = random(3, 2, 6, 6, 2), random(3, 4, 2, 3, 3).requires_grad_()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return vmap(grad(lambda w, x: conv(x, w, 2).sin().sum()))(weight, x)

    opaque = torch.compiler.allow_in_graph(function)
    compiled = torch.compile(lambda x, w: opaque(x, w), fullgraph=True, backend=recorded)
    direction = random(*weight.shape)
    (found,) = torch.autograd.grad((compiled(x, weight) * direction).sum(), weight)
    (expected,) = torch.autograd.grad((function(x, weight) * direction).sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
