"""The inner loop against finite differences and closed forms, and how losses are reduced."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from mamllit.backbones import MLP, BatchStatNorm
from mamllit.core.adapted import adapted_parameters, check_no_running_buffers, select_adapted
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.objectives import Classification, Regression, task_loss

Loss = Callable[[Params], Tensor]


def flat(params: Params) -> Tensor:
    return torch.cat([value.reshape(-1) for value in params.values()])


def inner_loop(
    loss: Loss,
    params: Params,
    *,
    step_size,
    steps: int,
    adapted: list[str] | None = None,
    first_order: bool = False,
) -> list[Params]:
    """`steps` gradient steps; all `steps + 1` points, `params` first."""
    points = [params]
    for _ in range(steps):
        points.append(gradient_step(loss, points[-1], adapted or list(params), step_size, first_order))
    return points


def meta_loss(support_loss: Loss, query_loss: Loss, **options) -> Loss:
    """The query loss after the inner loop, as a function of the starting point."""
    return lambda params: query_loss(inner_loop(support_loss, params, **options)[-1])


@pytest.fixture
def sine(sine_episodes: Callable[..., Episode]) -> tuple[Loss, Loss, Params]:
    """Support loss, query loss and parameters of a tanh net 1-40-40-1 on one sine task, float64."""
    net = MLP(1, [40, 40], 1, activation="tanh").double()
    task = sine_episodes(1, shots=10, queries=10)

    def loss_on(part: Examples) -> Loss:
        return lambda params: F.mse_loss(functional_call(net, params, (part.x[0],)), part.y[0])

    return loss_on(task.support), loss_on(task.query), {k: v.detach() for k, v in net.named_parameters()}


@pytest.fixture
def linear() -> dict[str, Tensor]:
    """A least-squares task: support x, y and query x, y of 6 points in 4 dimensions, and the weights w."""
    tensors = {name: torch.randn(6, 4, dtype=torch.float64) for name in ("xs", "xq")}
    return {
        **tensors,
        "ys": torch.randn(6, dtype=torch.float64),
        "yq": torch.randn(6, dtype=torch.float64),
        "w": torch.randn(4, dtype=torch.float64),
    }


# ---- the meta-gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradient_equals_central_finite_differences(steps: int, sine: tuple[Loss, Loss, Params]) -> None:
    support, query, params = sine
    meta = meta_loss(support, query, step_size=0.01, steps=steps)
    gradient = flat(grad(meta)(params))
    epsilon = 1e-5
    for _ in range(10):
        direction = {name: torch.randn_like(value) for name, value in params.items()}
        ahead, behind = ({k: params[k] + e * direction[k] for k in params} for e in (epsilon, -epsilon))
        numeric = (meta(ahead) - meta(behind)) / (2 * epsilon)
        torch.testing.assert_close(gradient @ flat(direction), numeric, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_meta_gradient_of_a_linear_model_has_its_closed_form(steps: int, linear: dict[str, Tensor]) -> None:
    """Mean squared error of x w: H = 2/n x'x is constant, so the meta-gradient is (I - alpha H)^steps g_q(phi)."""
    xs, ys, xq, yq, w = (linear[name] for name in ("xs", "ys", "xq", "yq", "w"))
    alpha, n = 0.1, len(ys)
    hessian = 2 / n * xs.T @ xs
    phi = w
    for _ in range(steps):
        phi = phi - alpha * 2 / n * xs.T @ (xs @ phi - ys)
    factor = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - alpha * hessian, steps)
    expected = factor @ (2 / n * xq.T @ (xq @ phi - yq))

    meta = meta_loss(lambda p: F.mse_loss(xs @ p["w"], ys), lambda p: F.mse_loss(xq @ p["w"], yq), step_size=alpha, steps=steps)
    torch.testing.assert_close(grad(meta)({"w": w})["w"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_is_the_query_gradient_at_the_adapted_point(steps: int, sine: tuple[Loss, Loss, Params]) -> None:
    support, query, params = sine
    first = flat(grad(meta_loss(support, query, step_size=0.01, steps=steps, first_order=True))(params))
    exact = flat(grad(meta_loss(support, query, step_size=0.01, steps=steps))(params))
    adapted = inner_loop(support, params, step_size=0.01, steps=steps)[-1]
    torch.testing.assert_close(first, flat(grad(query)(adapted)), rtol=1e-12, atol=1e-12)
    assert (first - exact).norm() > 0.01 * exact.norm()


def test_first_order_adapts_to_the_same_point(sine: tuple[Loss, Loss, Params]) -> None:
    support, _, params = sine
    exact, first = (inner_loop(support, params, step_size=0.01, steps=3, first_order=f)[-1] for f in (False, True))
    torch.testing.assert_close(flat(first), flat(exact), rtol=0, atol=0)


def test_first_order_is_exact_where_the_hessian_is_zero(linear: dict[str, Tensor]) -> None:
    """A support loss that is linear in the parameters has a constant gradient."""
    xs, xq, yq, w = (linear[name] for name in ("xs", "xq", "yq", "w"))
    gradients = [
        grad(
            meta_loss(
                lambda p: (xs @ p["w"]).mean(),
                lambda p: F.mse_loss(xq @ p["w"], yq),
                step_size=0.1,
                steps=3,
                first_order=first_order,
            )
        )({"w": w})["w"]
        for first_order in (False, True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_of_a_learned_step_size(first_order: bool, linear: dict[str, Tensor]) -> None:
    """After one step d L_q / d alpha = -<g_q(phi), g_s(w)>, with or without second derivatives."""
    xs, ys, xq, yq, w = (linear[name] for name in ("xs", "ys", "xq", "yq", "w"))

    def support(p: Params) -> Tensor:
        return F.mse_loss(xs @ p["w"], ys)

    def query(p: Params) -> Tensor:
        return F.mse_loss(xq @ p["w"], yq)

    def meta(alpha: Tensor) -> Tensor:
        return query(inner_loop(support, {"w": w}, step_size=alpha, steps=1, first_order=first_order)[-1])

    alpha = torch.tensor(0.1, dtype=torch.float64)
    g_s = grad(support)({"w": w})["w"]
    g_q = grad(query)({"w": w - alpha * g_s})["w"]
    torch.testing.assert_close(grad(meta)(alpha), -(g_q @ g_s))


# ---- what the loop changes -----------------------------------------------------------------------------------------


def test_step_size_zero_is_no_adaptation(sine: tuple[Loss, Loss, Params]) -> None:
    support, query, params = sine
    assert torch.equal(flat(inner_loop(support, params, step_size=0.0, steps=3)[-1]), flat(params))
    gradient = grad(meta_loss(support, query, step_size=0.0, steps=3))(params)
    torch.testing.assert_close(flat(gradient), flat(grad(query)(params)))


@pytest.mark.parametrize("first_order", [False, True])
def test_frozen_parameters_stay_and_still_get_a_meta_gradient(first_order: bool, sine: tuple[Loss, Loss, Params]) -> None:
    support, query, params = sine
    adapted = [name for name in params if name.startswith("layers.2")]
    options = {"step_size": 0.01, "steps": 2, "adapted": adapted, "first_order": first_order}
    for state in inner_loop(support, params, **options):
        assert all(state[name] is params[name] for name in params if name not in adapted)
    assert not torch.equal(state["layers.2.weight"], params["layers.2.weight"])
    gradient = grad(meta_loss(support, query, **options))(params)
    assert all(value.abs().max() > 0 for value in gradient.values())


def test_each_parameter_can_have_its_own_step_size(sine: tuple[Loss, Loss, Params]) -> None:
    support, _, params = sine
    sizes = {name: 0.01 * (i + 1) for i, name in enumerate(params)}
    sizes["layers.0.weight"] = torch.rand(40, 1, dtype=torch.float64)  # one number per weight
    gradient = grad(support)(params)
    after = inner_loop(support, params, step_size=sizes, steps=1)[-1]
    for name in params:
        torch.testing.assert_close(after[name], params[name] - sizes[name] * gradient[name])


def test_the_parameters_handed_in_are_not_written_to(sine: tuple[Loss, Loss, Params]) -> None:
    support, _, params = sine
    before = flat(params).clone()
    inner_loop(support, params, step_size=0.1, steps=2)
    assert torch.equal(flat(params), before)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_adapted_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adapted names \['v'\], which are not parameters; the parameters are \['w'\]"):
        inner_loop(lambda p: p["w"].sum(), {"w": torch.ones(1)}, step_size=0.1, steps=1, adapted=["w", "v"])


def test_a_missing_step_size_is_refused() -> None:
    params = {"w": torch.ones(1), "v": torch.ones(1)}
    with pytest.raises(ValueError, match=r"step_size has no entry for the adapted parameters \['v'\]; it has \['w'\]"):
        inner_loop(lambda p: p["w"].sum(), params, step_size={"w": 0.1}, steps=1)


def test_select_adapted_leaves_out_the_frozen_patterns() -> None:
    names = ["layers.0.weight", "norms.0.beta", "norms.0.gamma", "beta_net.weight"]
    assert select_adapted(names) == names
    assert select_adapted(names, ["*.beta", "*.gamma"]) == ["layers.0.weight", "beta_net.weight"]


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter is left to adapt: .* \['\*'\] cover all of \['a', 'b'\]"):
        select_adapted(["b", "a"], ["*"])


def test_a_network_without_a_trainable_parameter_is_refused() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter is left to adapt: Linear has none that requires a gradient\. Freeze"):
        adapted_parameters(net)
    net.bias.requires_grad_(True)
    assert adapted_parameters(net) == ["bias"]


def test_running_buffers_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(
        ValueError, match=r"running buffers.*: 1\.running_mean, 1\.running_var, 1\.num_batches_tracked\. Use mamllit"
    ):
        check_no_running_buffers(net)


def test_constant_buffers_and_batch_statistics_are_fine() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), BatchStatNorm(2))
    net.register_buffer("mean_image", torch.zeros(2))
    check_no_running_buffers(net)


# ---- reduction -----------------------------------------------------------------------------------------------------


def test_sum_over_shots_in_classification_is_ways_times_the_mean_on_the_support() -> None:
    ways, shots = 5, 3
    support = Examples(torch.empty(ways * shots, 2), torch.arange(ways).repeat_interleave(shots), ways)
    output = torch.randn(ways * shots, ways)
    mean, summed = (task_loss(Classification(), output, support, support, r) for r in ("mean", "sum_over_shots"))
    torch.testing.assert_close(mean, F.cross_entropy(output, support.y))
    torch.testing.assert_close(summed, F.cross_entropy(output, support.y, reduction="sum") / shots)
    torch.testing.assert_close(summed, ways * mean)


def test_sum_over_shots_divides_the_query_loss_by_the_support_shots_too() -> None:
    """mini-ImageNet, 5-way 1-shot with 15 queries: 75 times the mean (specification 4c)."""
    query = Examples(torch.empty(75, 2), torch.arange(5).repeat_interleave(15), 5)
    output = torch.randn(75, 5)
    support = Examples(torch.empty(5, 2), torch.arange(5), 5)
    loss = task_loss(Classification(), output, query, support, "sum_over_shots")
    torch.testing.assert_close(loss, 75 * F.cross_entropy(output, query.y))


def test_sum_over_shots_in_regression_is_the_mean_where_queries_equal_shots() -> None:
    points = Examples(torch.empty(10, 1), torch.randn(10, 1))
    output = torch.randn(10, 1)
    loss = task_loss(Regression(), output, points, points, "sum_over_shots")
    torch.testing.assert_close(loss, ((output - points.y) ** 2).mean())


def test_objectives_report_accuracy_and_squared_error() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [1.0, 0.0]])
    classification, regression = Classification(), Regression()
    assert classification.metric(logits, torch.tensor([0, 1, 1, 0])).item() == 0.75
    assert regression.metric(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).item() == 2.5
