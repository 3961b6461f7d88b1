"""Which networks can be meta-trained: one row per module of torch.nn, each right or refused in a sentence.

Right means: the meta-gradient that `MetaGradient` gives by default is that of plain autograd, task by task, in float64.
"""

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from network_rows import (
    KNOWN_RIGHT,
    LOOPED,
    LR,
    PLAIN,
    RANDOM,
    ROWS,
    TASKS,
    TRIED,
    category,
    episodes,
    flat,
    method_of,
    table,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import mamllit.backbones
from mamllit.backbones import Timm
from mamllit.core.episode import Episode
from mamllit.core.tree import tree_map
from mamllit.engine.evaluation import evaluate, readings
from mamllit.engine.known import KNOWN, unknown
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML
from mamllit.objectives import Classification


def plain_autograd(method: MAML, batch: Episode) -> Tensor:
    """The meta-gradient by `torch.autograd.grad(create_graph=True)`, one task after another."""
    names, own = zip(*method.backbone.named_parameters(), strict=True)
    losses = []
    for task in range(TASKS):
        state = own
        for _ in range(method.inner_steps):
            output = functional_call(method.backbone, dict(zip(names, state, strict=True)), (batch.support.x[task],))
            loss = nn.functional.cross_entropy(output, batch.support.y[task])
            gradient = torch.autograd.grad(loss, state, create_graph=True, allow_unused=True, materialize_grads=True)
            state = tuple(value - LR * slope for value, slope in zip(state, gradient, strict=True))
        output = functional_call(method.backbone, dict(zip(names, state, strict=True)), (batch.query.x[task],))
        losses.append(nn.functional.cross_entropy(output, batch.query.y[task]))
    found = torch.autograd.grad(torch.stack(losses).mean(), own, allow_unused=True, materialize_grads=True)
    assert all(value.isfinite().all() for value in found)
    return torch.cat([value.flatten() for value in found])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_network_is_right_or_refused(name: str) -> None:
    row = ROWS[name]
    batch = episodes(row)
    torch.manual_seed(0)
    if category(row) == "refused":
        with pytest.raises(ValueError, match=row.result):
            MetaGradient(method_of(row))(batch)
        return
    method = method_of(row)
    gradient = MetaGradient(method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        random = torch.get_rng_state()
        finding = gradient.check(batch)
        assert torch.equal(torch.get_rng_state(), random)
        step = gradient(batch)
        values = evaluate(method, batch, 2)
    said = [str(w.message) for w in caught if "vmap" in str(w.message)]
    assert not (unknown(method) and row.result == KNOWN_RIGHT)
    assert finding.vectorised == (row.result != LOOPED)
    assert (finding.operators == "plain") == (row.result == PLAIN)
    assert len(said) in ((1, 2) if row.result == LOOPED else (0,))
    assert all(value.isfinite().all() for value in (values, *step.gradient.values()))
    if row.result != RANDOM and name != "RReLU":
        with sdpa_kernel(SDPBackend.MATH):
            expected = plain_autograd(method, batch)
        found = torch.cat([value.flatten() for value in step.gradient.values()])
        assert float((found - expected).norm() / expected.norm()) < 1e-9
        torch.testing.assert_close(
            evaluate(method, batch, 2), readings(method, batch, 2, ["transductive"], "loop")["transductive"]
        )


def test_the_rows_cover_what_is_said_to_be_known() -> None:
    """Every class of `KNOWN` stands in a row that needs no trial, or in one whose trial finds it right; so does every network
    of mamllit.backbones."""
    made = {type(m) for row in ROWS.values() if row.result in (KNOWN_RIGHT, TRIED) for m in row.make().modules()}
    containers = {nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}
    assert KNOWN - made - containers == set()
    modules = [importlib.import_module(f"mamllit.backbones.{m.name}") for m in pkgutil.iter_modules(mamllit.backbones.__path__)]
    own = {v for m in modules for v in vars(m).values() if inspect.isclass(v) and issubclass(v, nn.Module)}
    own = {v for v in own if v.__module__.startswith("mamllit.backbones")}
    assert own - made == {Timm}  # any network of timm: tests/backbones/test_timm.py


# ---- faults, one by one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["LayerNorm", "BatchNorm1d(track_running_stats=False)", "InstanceNorm2d(affine=True)"])
def test_the_meta_gradient_through_pytorch_s_norms_is_the_slope_of_the_meta_loss(norm: str) -> None:
    """By central differences along a random direction; the gradient that `vmap` gave was off in the fourth digit or earlier."""
    row = ROWS[norm]
    method, batch = method_of(row), episodes(row)
    gradient = MetaGradient(method)
    trained = list(method.parameters())
    direction = [torch.randn_like(value) for value in trained]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient(batch).gradient.values(), direction, strict=True))
    losses = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for value, d in zip(trained, direction, strict=True):
                value.add_(d, alpha=step)
        losses.append(float(gradient(batch).loss))
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_first_order_needs_no_replacement() -> None:
    """Nothing differentiates the norm's backward pass then."""
    row = ROWS["LayerNorm"]
    assert MetaGradient(method_of(row, first_order=True)).check(episodes(row)).operators == "math"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GRU", r"PyTorch's vmap does not run \(.*\) for backbone\.0\.net \(a GRU\); the episodes run one by one"),
        (
            "Embedding(padding_idx)",
            r"PyTorch's vmap gets the meta-gradient wrong by .*% for backbone\.0\.net \(a Embedding\); the",
        ),
    ],
)
def test_one_warning_names_the_module(name: str, text: str) -> None:
    row = ROWS[name]
    method = method_of(row)
    with pytest.warns(UserWarning, match=text):
        step = MetaGradient(method)(episodes(row))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = MetaGradient(method, "vmap")(episodes(row))
    torch.testing.assert_close(again._asdict(), step._asdict(), rtol=0, atol=0)


def test_a_layer_that_starts_at_zero_hides_nothing() -> None:
    """A head of zeros lets no gradient through to the norm before it, until it has been trained."""
    method = method_of(ROWS["LayerNorm"])
    nn.init.zeros_(method.backbone[-1].weight)  # type: ignore[index, arg-type]
    assert MetaGradient(method).check(episodes(ROWS["LayerNorm"])).operators == "plain"


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    row = flat(lambda: nn.utils.weight_norm(nn.Linear(8, 8)))
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=r"the network cannot be copied \(.*parametrizations"):
        MetaGradient(method_of(row)).check(episodes(row))


def test_a_network_of_float32_alone_is_tried_in_float32() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(8, 8, dtype=torch.float32)

    row = flat(Single)
    method = MAML(row.make(), Classification(), LR, 2, "mean", frozen=())
    batch = tree_map(lambda t: t.float() if t.is_floating_point() else t, episodes(row))
    assert MetaGradient(method).check(batch).vectorised
    assert all(value.dtype == torch.float32 for value in MetaGradient(method)(batch).gradient.values())


def test_a_compiled_step_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A back end that forgets a factor: a warning with the difference, and the plain step from then on."""

    def forgetful(function: Callable[..., tuple[Tensor, ...]], backend: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *tensors: tuple(1.5 * value for value in function(*tensors))

    monkeypatch.setattr("mamllit.engine.compiling._compile", forgetful)
    row = ROWS["mamllit MLP with BatchStatNorm"]
    method, batch = method_of(row), episodes(row)
    compiled = MetaGradient(method, compiled=True)
    with pytest.warns(UserWarning, match=r"the compiled meta-gradient differs from the plain one by .*%, so the .* uncompiled"):
        step = compiled(batch)
    torch.testing.assert_close(step._asdict(), MetaGradient(method)(batch)._asdict(), rtol=0, atol=0)


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_rows_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- rows -->\n(.*)<!-- end of rows -->", page, re.DOTALL)
    assert found is not None
    assert found[1].strip() == table().strip(), "run `python tests/helpers/network_rows.py` and put its output there"
