"""The outer step on policies: its products, its gradient, and what it is at the beginning of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamllit.core.tree import item, tree_map
from mamllit.engine.acting import Credit, Practice, practise, thinned
from mamllit.engine.policy_step import PolicyStep
from mamllit.methods import ANIL, CAVIA, MAML, MetaSGD, MTNet
from mamllit.rl import GaussianPolicy, Navigation, Noise, PolicyGradient
from mamllit.rl.objective import unpack

TASKS, K, H = 3, 4, 6


def policy() -> GaussianPolicy:
    return GaussianPolicy(2, 2, hidden=[5, 4], activation="tanh", std=0.7)


METHODS: dict[str, Callable[[str], Any]] = {
    "MAML": lambda inner: MAML(policy(), PolicyGradient(inner), 0.2, 1, "mean"),  # type: ignore[arg-type]
    "two steps": lambda inner: MAML(policy(), PolicyGradient(inner), 0.2, 2, "mean"),  # type: ignore[arg-type]
    "no step": lambda inner: MAML(policy(), PolicyGradient(inner), 0.2, 0, "mean"),  # type: ignore[arg-type]
    "first order": lambda inner: MAML(policy(), PolicyGradient(inner), 0.2, 1, "mean", True),  # type: ignore[arg-type]
    "ANIL": lambda inner: ANIL(policy(), PolicyGradient(inner), 0.2, 1, "mean"),  # type: ignore[arg-type]
    "Meta-SGD": lambda inner: MetaSGD(policy(), PolicyGradient(inner), "mean", (0.1, 0.3)),  # type: ignore[arg-type]
    "T-net": lambda inner: MTNet(policy(), PolicyGradient(inner), 0.2, 1, "mean", masked=False),  # type: ignore[arg-type]
    "CAVIA": lambda inner: CAVIA(policy(), PolicyGradient(inner), 0.5, 1, "mean", 3, "layers.0"),  # type: ignore[arg-type]
}


def gathered(name: str, inner: str = "log") -> tuple[Any, Practice]:
    torch.manual_seed(0)
    method = METHODS[name](inner).double()
    world = Navigation(horizon=H)
    tasks = world.paper_tasks()[:TASKS].double()
    trajectories = [K] * (method.inner_steps + 1)
    practice = practise(method, world, tasks, Noise(0, "train", (0, 1, 2)), trajectories, Credit())
    valid = unpack(practice.query.y).valid
    valid[0, 0, 3:] = 0  # as if it had ended
    practice.query.y[..., -1] = valid
    return method, practice


def of(method: Any, practice: Practice, **settings: float) -> PolicyStep:
    return PolicyStep(method, practice, list(method.parameters()), **settings)  # type: ignore[arg-type]


def outputs_at(step: PolicyStep, task: int) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """The outputs of one task's adapted policy as a function of the meta-parameters."""
    practice, method = step.practice, step.method
    names = [name for name, _ in method.named_parameters()]  # type: ignore[attr-defined]

    class Run(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.method = method

        def forward(self) -> Tensor:
            return step.outputs([item(part, task) for part in practice.supports], item(practice.query, task))

    run = Run()
    return lambda values: torch.func.functional_call(run, {f"method.{n}": v for n, v in zip(names, values, strict=True)}, ())


def divergence(step: PolicyStep, values: tuple[Tensor, ...]) -> Tensor:
    """Mean over tasks of the mean KL over valid steps, plainly."""
    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):
        valid = unpack(item(step.practice.query, task).y).valid
        kl = step.objective.distribution.kl(step.practice.outputs[task], outputs_at(step, task)(values))
        total = total + (kl * valid).sum() / valid.sum() / TASKS
    return total


@pytest.mark.parametrize("name", METHODS)
def test_a_product_is_the_double_backward_of_the_divergence(name: str) -> None:
    method, practice = gathered(name)
    step = of(method, practice)
    values = tuple(value.detach() for value in method.parameters())
    tangent = tuple(torch.randn_like(value) for value in values)
    vector = torch.cat([value.reshape(-1) for value in tangent])
    gradient = torch.func.grad(lambda at: divergence(step, at))
    _, expected = torch.func.jvp(gradient, (values,), (tangent,))
    found = step.product(vector)
    expected = torch.cat([value.reshape(-1) for value in expected])
    assert (found - expected).norm() / expected.norm().clamp(min=1e-30) < 1e-10
    assert vector @ found >= 0
    assert torch.equal(found, step.product(vector))


@pytest.mark.parametrize(("name", "inner"), [("MAML", "log"), ("MAML", "ratio"), ("two steps", "dice"), ("Meta-SGD", "log")])
def test_the_gradient_is_that_of_finite_differences(name: str, inner: str) -> None:
    method, practice = gathered(name, inner)
    step = of(method, practice)
    loss, gradient = step.gradient()
    assert loss.item() == pytest.approx(step.judge()[0].item(), abs=1e-12)
    for value, slope in zip(method.parameters(), gradient, strict=True):
        direction = torch.randn_like(value)
        found = []
        for sign in (1, -1):
            value.data += sign * 1e-6 * direction
            found.append(step.judge()[0].item())
            value.data -= sign * 1e-6 * direction
        assert (found[0] - found[1]) / 2e-6 == pytest.approx((slope * direction).sum().item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_begins_with_ratio_1_and_no_divergence(name: str) -> None:
    method, practice = gathered(name)
    loss, kl = of(method, practice).judge()
    happened = unpack(practice.query.y)
    mean = (happened.advantage * happened.valid).sum((1, 2)) / happened.valid.sum((1, 2))
    assert kl.abs() < 1e-12
    assert loss.item() == pytest.approx(-mean.mean().item(), abs=1e-12)


def test_the_proximal_loss_begins_as_the_surrogate_and_then_clips_and_penalises() -> None:
    method, practice = gathered("two steps", "ratio")
    step = of(method, practice)
    loss, gradient = step.gradient()
    proximal, same = step.proximal(0.3, 10.0)
    assert proximal.item() == pytest.approx(loss.item(), abs=1e-10)
    for one, two in zip(gradient, same, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)
    for value in method.parameters():
        value.data += 0.1 * torch.randn_like(value)
    free, unpenalised = step.judge()[0].item(), step.proximal(1e9, 0.0)[0].item()
    assert unpenalised == pytest.approx(free, abs=1e-10)
    clipped, penalised = step.proximal(1e-3, 0.0)[0].item(), step.proximal(1e9, 2.0)[0].item()
    assert clipped > free
    kl = 0.0
    for task in range(TASKS):
        state = method.start(1)
        for support, before in zip(practice.supports, practice.before, strict=True):
            own = item(support, task)
            valid = unpack(own.y).valid
            found = step.objective.distribution.kl(before[task], method.predict(state, own.x))
            kl += ((found * valid).sum() / valid.sum() / TASKS).item()
            state = method.step(state, own)
    assert penalised - free == pytest.approx(2 * kl, rel=1e-9)


def test_tasks_in_chunks_or_all_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    method, practice = gathered("MAML")
    vector = torch.randn(sum(value.numel() for value in method.parameters()), dtype=torch.float64)

    def all_of(step: PolicyStep) -> list[Tensor]:
        loss, gradient = step.gradient()
        return [loss, *gradient, *step.judge(), step.product(vector)]

    together = all_of(of(method, practice))
    monkeypatch.setattr("mamllit.engine.acting.ROWS", K * H)
    monkeypatch.setattr("mamllit.engine.acting.chunks.__defaults__", None)
    monkeypatch.setattr("mamllit.engine.acting.chunks.__kwdefaults__", {"rows": K * H})
    for alone, value in zip(all_of(of(method, practice)), together, strict=True):
        torch.testing.assert_close(alone, value, rtol=1e-10, atol=1e-12)


def test_curvature_from_a_part_of_the_steps() -> None:
    """Every step once over the offsets; whole trajectories for dice; the loss and the divergence still take all."""
    method, practice = gathered("MAML")
    parts = [thinned(practice.query, 0.5, False, offset).x for offset in (0, 1)]
    assert [part.shape[2] for part in parts] == [3, 3]
    assert torch.equal(torch.stack(parts, 3).flatten(2, 3), practice.query.x)
    assert thinned(practice.query, 0.5, True, 0).x.shape == (TASKS, 2, H, 2)
    assert thinned(practice.query, 1.0, True, 0) is practice.query
    vector = torch.randn(sum(value.numel() for value in method.parameters()), dtype=torch.float64)
    part, whole = of(method, practice, curvature=0.5), of(method, practice)
    assert vector @ part.product(vector) > 0
    assert not torch.allclose(part.product(vector), whole.product(vector))
    assert torch.equal(torch.stack(part.judge()), torch.stack(whole.judge()))


def test_a_share_of_a_step_is_a_step_of_that_share_of_the_step_size() -> None:
    from mamllit.engine.acting import adapted

    method, practice = gathered("MAML")
    half = adapted(method, None, practice.supports[0], 0.5)
    method.inner_lr = 0.1  # type: ignore[assignment]
    for name, value in adapted(method, None, practice.supports[0]).items():
        torch.testing.assert_close(half[name], value)


def test_a_task_that_diverges_in_an_evaluation_leaves_the_others_alone() -> None:
    """Its returns are nan from there; strictly, as in training, it stops with the task named."""
    method, _ = gathered("MAML")
    world = Navigation(horizon=H)
    tasks = world.paper_tasks()[:TASKS].double()
    noise = Noise(0, "train", (0, 1, 2))
    sound = practise(method, world, tasks, noise, [K, K, K], Credit(), strict=False).returns
    tasks = tree_map(lambda value: value.clone(), tasks)
    tasks[1] = float("nan")
    found = practise(method, world, tasks, noise, [K, K, K], Credit(), strict=False).returns
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], sound[[0, 2]])
    with pytest.raises(FloatingPointError, match=r"not finite in 1 of 3 tasks: goal_x nan, goal_y nan"):
        practise(method, world, tasks, noise, [K, K], Credit())
