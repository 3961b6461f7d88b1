"""Which networks can be meta-trained: one row per module of torch.nn, each right or refused in a sentence.

Right means: the meta-gradient that `MetaGradient` gives by default is that of plain autograd, task by task, in float64. The
table of docs/networks.md is made from these rows (`python tests/engine/test_networks.py` prints it).
"""

import importlib
import inspect
import pkgutil
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import mamllit.backbones
from mamllit.backbones import MLP, BatchStatNorm, Conv4
from mamllit.backbones.conv_pairs import ConvPairs
from mamllit.backbones.heads import CosineHead
from mamllit.backbones.resnet12 import ResNet12
from mamllit.backbones.statistician import StatisticianDecoder, StatisticianEncoder
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item, tree_map
from mamllit.engine.evaluation import BATCH_NORMS, evaluate, predict, readings
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.engine.trial import KNOWN, company, unknown
from mamllit.inference.adapt import classify
from mamllit.methods import MAML
from mamllit.objectives import Classification

WAYS, TASKS, LR = 3, 3, 0.3
KNOWN_RIGHT, TRIED, PLAIN, LOOPED, RANDOM = (
    "vectorised, known",
    "vectorised, after the trial",
    "vectorised, norms as plain operators",
    "one by one",
    "vectorised, random per task",
)
HEADINGS = {
    KNOWN_RIGHT: "Right under `vmap`: no trial needed",
    TRIED: "Right under `vmap`: found by the trial",
    PLAIN: "Right under `vmap` with mamllit's norms in place of PyTorch's (found by the trial)",
    RANDOM: "Random: runs under `vmap`, each task with random numbers of its own",
    LOOPED: "Right one by one: `vmap` does not run them, or not rightly (found by the trial, said in a warning)",
    "refused": "Refused in a sentence, before the first step",
}


class Row(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 6, 6)
    result: str = KNOWN_RIGHT  # one of the above, or the message of the refusal
    integers: bool = False


# ---- small networks around one module ------------------------------------------------------------------------------


def flat(module: Callable[[], nn.Module], result: str = KNOWN_RIGHT, width: int = 8) -> Row:
    return Row(lambda: nn.Sequential(nn.Linear(12, 8), module(), nn.Tanh(), nn.Linear(width, WAYS)), (12,), result)


def images(module: Callable[[], nn.Module], result: str = KNOWN_RIGHT) -> Row:
    def make() -> nn.Module:
        body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), module(), nn.Tanh(), nn.Flatten())
        return nn.Sequential(body, nn.Linear(body(torch.zeros(2, 2, 6, 6)).shape[1], WAYS))

    return Row(make, (2, 6, 6), result)


def volumes(dimensions: int, module: Callable[[], nn.Module], result: str = KNOWN_RIGHT) -> Row:
    shape = (2, *(4,) * dimensions)
    first = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions]

    def make() -> nn.Module:
        body = nn.Sequential(first(2, 4, 3, padding=1), module(), nn.Tanh(), nn.Flatten())
        return nn.Sequential(body, nn.Linear(body(torch.zeros(2, *shape)).shape[1], WAYS))

    return Row(make, shape, result)


def sequence(module: Callable[[], nn.Module], result: str, width: int = 6) -> Row:
    return Row(lambda: nn.Sequential(module(), nn.Tanh(), nn.Linear(width, WAYS)), (5, 6), result)


def words(module: Callable[[], nn.Module], result: str) -> Row:
    return Row(lambda: nn.Sequential(module(), nn.Tanh(), nn.Linear(6, WAYS)), (5,), result, True)


class Last(nn.Module):
    """The last output of a recurrent net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0][:, -1]


class Unrolled(nn.Module):
    """A cell over the steps of a sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Mean(nn.Module):
    """The mean over the steps of a sequence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(1)


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x).mean(1)


class Pair(nn.Module):
    """A module of two inputs, given the same twice."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, x.roll(1, -1))[..., None].flatten(1).expand(-1, 8)


class OwnNorm(nn.Module):
    """A user's block that calls the functional form."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (8,), self.scale)


class OwnBlock(nn.Module):
    """A user's block of modules that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(x)) + torch.zeros(8)


class Branching(nn.Module):
    """Asks for a value in Python."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.mean().item() > 0 else x


class Keeps(nn.Module):
    """Writes to a buffer in forward."""

    seen: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "assigned":
            self.seen = x.mean()
        elif self.how == "counted":
            self.seen = self.seen + 1
        else:
            self.seen.add_(x.mean().detach())
        return x


def no_stats(kind: Callable[..., nn.Module], channels: int) -> Callable[[], nn.Module]:
    return lambda: kind(channels, track_running_stats=False)


ACTIVATIONS = """
    ReLU ReLU6 ELU SELU CELU GELU SiLU Mish Hardswish Hardtanh LeakyReLU LogSigmoid PReLU Sigmoid Softplus Softshrink Softsign
    Tanh Tanhshrink Hardshrink Identity
"""
WRITES, NO_SECOND = r"the forward pass of .* writes to ", r"PyTorch has no second derivative of .* \(a {}\) \("
ROWS: dict[str, Row] = {
    **{name: flat(getattr(nn, name)) for name in ACTIVATIONS.split()},
    "GLU": flat(nn.GLU, width=4),
    "Softmax": flat(lambda: nn.Softmax(-1)),
    "LogSoftmax": flat(lambda: nn.LogSoftmax(-1)),
    "Softmin": flat(lambda: nn.Softmin(-1)),
    "Threshold": flat(lambda: nn.Threshold(0.1, 0.0)),
    "Hardsigmoid": flat(nn.Hardsigmoid, NO_SECOND.format("Hardsigmoid")),
    "RReLU": flat(nn.RReLU, LOOPED),
    "Linear": flat(lambda: nn.Linear(8, 8)),
    "Bilinear": Row(lambda: nn.Sequential(nn.Linear(12, 8), Pair(nn.Bilinear(8, 8, 8)), nn.Linear(8, WAYS)), (12,), TRIED),
    "CosineSimilarity": Row(
        lambda: nn.Sequential(nn.Linear(12, 8), Pair(nn.CosineSimilarity()), nn.Linear(8, WAYS)), (12,), TRIED
    ),
    "Unflatten": flat(lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten())),
    "Dropout": flat(nn.Dropout, RANDOM),
    "AlphaDropout": flat(nn.AlphaDropout, RANDOM),
    "Dropout2d": images(nn.Dropout2d, RANDOM),
    # norms
    "LayerNorm": flat(lambda: nn.LayerNorm(8), PLAIN),
    "LayerNorm without parameters": flat(lambda: nn.LayerNorm(8, elementwise_affine=False), TRIED),
    "LayerNorm without bias": flat(lambda: nn.LayerNorm(8, bias=False), PLAIN),
    "functional.layer_norm in a module of your own": flat(OwnNorm, PLAIN),
    "RMSNorm": flat(lambda: nn.RMSNorm(8)),
    "GroupNorm": images(lambda: nn.GroupNorm(2, 4)),
    "BatchNorm1d(track_running_stats=False)": flat(no_stats(nn.BatchNorm1d, 8), PLAIN),
    "BatchNorm1d(affine=False, track_running_stats=False)": flat(
        lambda: nn.BatchNorm1d(8, affine=False, track_running_stats=False), TRIED
    ),
    "BatchNorm2d(track_running_stats=False)": images(no_stats(nn.BatchNorm2d, 4), PLAIN),
    "BatchNorm3d(track_running_stats=False)": volumes(3, no_stats(nn.BatchNorm3d, 4), PLAIN),
    "BatchNorm2d": images(lambda: nn.BatchNorm2d(4), "running buffers, which an inner loop would overwrite"),
    "InstanceNorm1d(affine=True)": volumes(1, lambda: nn.InstanceNorm1d(4, affine=True), PLAIN),
    "InstanceNorm2d(affine=True)": images(lambda: nn.InstanceNorm2d(4, affine=True), PLAIN),
    "InstanceNorm2d": images(lambda: nn.InstanceNorm2d(4), TRIED),
    "LocalResponseNorm": images(lambda: nn.LocalResponseNorm(2)),
    # convolutions, pooling, padding, resizing
    "Conv2d": images(lambda: nn.Conv2d(4, 4, 3)),
    "Conv2d, grouped": images(lambda: nn.Conv2d(4, 4, 3, groups=2)),
    "Conv2d, depthwise": images(lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same")),
    "Conv2d, dilated": images(lambda: nn.Conv2d(4, 4, 3, dilation=2, stride=2)),
    "Conv2d, reflected": images(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "Conv2d, circular": images(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "ConvTranspose2d": images(lambda: nn.ConvTranspose2d(4, 4, 3, stride=2)),
    "Conv1d": volumes(1, lambda: nn.Conv1d(4, 4, 3)),
    "ConvTranspose1d": volumes(1, lambda: nn.ConvTranspose1d(4, 4, 3)),
    "Conv3d": volumes(3, lambda: nn.Conv3d(4, 4, 3)),
    "ConvTranspose3d": volumes(3, lambda: nn.ConvTranspose3d(4, 2, 3)),
    "Unfold": images(lambda: nn.Unfold(2)),
    "Fold": images(lambda: nn.Sequential(nn.Unfold(2), nn.Fold((6, 6), 2))),
    "Softmax2d": images(nn.Softmax2d),
    **{
        f"{kind}Pool{d}d": (images if d == 2 else lambda module, d=d: volumes(d, module))(
            lambda kind=kind, d=d: getattr(nn, f"{kind}Pool{d}d")(2)
        )
        for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
        for d in (1, 2, 3)
    },
    "LPPool1d": volumes(1, lambda: nn.LPPool1d(2, 2)),
    "LPPool2d": images(lambda: nn.LPPool2d(2, 2)),
    **{
        f"{kind}Pad{d}d": (images if d == 2 else lambda module, d=d: volumes(d, module))(
            lambda kind=kind, d=d: getattr(nn, f"{kind}Pad{d}d")(1, *((0.5,) if kind == "Constant" else ()))
        )
        for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
        for d in (1, 2)
    },
    "PixelShuffle": images(lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": images(lambda: nn.PixelUnshuffle(2)),
    "ChannelShuffle": images(lambda: nn.ChannelShuffle(2)),
    "Upsample": images(lambda: nn.Upsample(scale_factor=2)),
    "Upsample, bicubic": images(lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "UpsamplingNearest2d": images(lambda: nn.UpsamplingNearest2d(scale_factor=2)),
    "UpsamplingBilinear2d": images(lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    # sequences
    "RNN": sequence(lambda: Last(nn.RNN(6, 6, batch_first=True)), LOOPED),
    "GRU": sequence(lambda: Last(nn.GRU(6, 6, batch_first=True)), LOOPED),
    "LSTM": sequence(lambda: Last(nn.LSTM(6, 6, batch_first=True)), LOOPED),
    "LSTM, two layers both ways": sequence(
        lambda: Last(nn.LSTM(6, 6, 2, bidirectional=True, batch_first=True)), LOOPED, width=12
    ),
    "RNNCell": sequence(lambda: Unrolled(nn.RNNCell(6, 6)), LOOPED),
    "GRUCell": sequence(lambda: Unrolled(nn.GRUCell(6, 6)), LOOPED),
    "LSTMCell": sequence(lambda: Unrolled(nn.LSTMCell(6, 6)), LOOPED),
    "MultiheadAttention": sequence(Attention, TRIED),
    "MultiheadAttention with dropout": sequence(lambda: Attention(dropout=0.3), RANDOM),
    "TransformerEncoderLayer": sequence(
        lambda: Mean(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)), PLAIN
    ),
    "TransformerEncoder, norm first": sequence(
        lambda: Mean(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
            )
        ),
        PLAIN,
    ),
    "TransformerDecoderLayer": sequence(Decoder, PLAIN),
    "Embedding": words(lambda: Mean(nn.Embedding(10, 6)), TRIED),
    "Embedding(padding_idx)": words(lambda: Mean(nn.Embedding(10, 6, padding_idx=0)), LOOPED),
    "Embedding(scale_grad_by_freq)": words(lambda: Mean(nn.Embedding(10, 6, scale_grad_by_freq=True)), LOOPED),
    "Embedding(max_norm)": words(lambda: Mean(nn.Embedding(10, 6, max_norm=1.0)), WRITES + "backbone.0.net.weight"),
    "Embedding(sparse)": words(lambda: Mean(nn.Embedding(10, 6, sparse=True)), NO_SECOND.format("Embedding")),
    "EmbeddingBag": words(lambda: nn.EmbeddingBag(10, 6), NO_SECOND.format("EmbeddingBag")),
    # parametrisations and users' own
    "weight_norm": flat(lambda: parametrizations.weight_norm(nn.Linear(8, 8)), TRIED),
    "orthogonal": flat(lambda: parametrizations.orthogonal(nn.Linear(8, 8)), TRIED),
    "spectral_norm": flat(lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), WRITES),
    "old spectral_norm": flat(lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), WRITES),
    "a module of your own": flat(OwnBlock, TRIED),
    "a branch on a value (.item())": flat(Branching, LOOPED),
    "a buffer assigned in forward": flat(lambda: Keeps("assigned"), WRITES + r"backbone\.1\.seen\. Each task"),
    "a counter in forward": flat(lambda: Keeps("counted"), WRITES + r"backbone\.1\.seen"),
    "a buffer written in place": flat(
        lambda: Keeps("in place"), r"the forward pass of backbone\.1 \(a Keeps\) writes in place"
    ),
    # mamllit's own
    "mamllit Conv4, strided": Row(lambda: Conv4(2, 4, WAYS, 16, "stride"), (2, 16, 16)),
    "mamllit Conv4, max-pooling": Row(lambda: Conv4(2, 4, WAYS, 16, "max_pool", norm_scale=True), (2, 16, 16)),
    "mamllit MLP with BatchStatNorm": Row(lambda: MLP(12, [8, 8], WAYS, norm=True), (12,)),
    **{
        f"mamllit Conv4, {downsample}, fast": Row(
            lambda d=downsample: Conv4(2, 4, WAYS, 16, d, implementation="fast"), (2, 16, 16)
        )
        for downsample in ("stride", "max_pool")
    },
    "mamllit ConvPairs": Row(lambda: nn.Sequential(ConvPairs(2, 8, 2, 4), nn.Linear(4, WAYS)), (2, 8, 8)),
    "mamllit StatisticianEncoder": Row(lambda: nn.Sequential(StatisticianEncoder((2, 2, 2)), nn.Linear(32, WAYS)), (1, 28, 28)),
    "mamllit StatisticianDecoder": Row(
        lambda: nn.Sequential(StatisticianDecoder(12, (2, 2, 2)), nn.Flatten(), nn.Linear(784, WAYS)), (12,)
    ),
    "mamllit ResNet12": Row(lambda: ResNet12(2, WAYS, 16, (3, 3, 3, 3)), (2, 16, 16)),
    "mamllit CosineHead": Row(lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), CosineHead(8, WAYS)), (12,)),
    "mamllit BatchStatNorm in a net of torch.nn": flat(lambda: BatchStatNorm(8, scale=True)),
}


def episodes(row: Row) -> Episode:
    random = torch.Generator().manual_seed(1)

    def part(per_class: int) -> Examples:
        y = torch.arange(WAYS).repeat_interleave(per_class).expand(TASKS, -1)
        size = (TASKS, WAYS * per_class, *row.shape)
        x = torch.randint(0, 10, size, generator=random) if row.integers else torch.randn(size, generator=random).double()
        return Examples(x, y, WAYS)

    return Episode(part(2), part(2))


def method_of(row: Row, first_order: bool = False) -> MAML:
    return MAML(row.make().double(), Classification(), LR, 2, "mean", first_order, frozen=())


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


def category(row: Row) -> str:
    return row.result if row.result in HEADINGS else "refused"


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
    assert own - made == set()


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


# ---- what a prediction depends on ------------------------------------------------------------------------------------


class AcrossTheBatch(nn.Module):
    """Takes the mean of the batch away: no norm, and no statistics that could be those of the support."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("make", "kind", "operators"),
    [
        (nn.Identity, "none", "torch"),
        (lambda: nn.LayerNorm(8), "none", "torch"),
        (nn.Dropout, "none", "torch"),
        (lambda: BatchStatNorm(8), "norm", "torch"),
        (lambda: nn.BatchNorm1d(8, track_running_stats=False), "norm", "plain"),
        (AcrossTheBatch, "other", "torch"),
    ],
    ids=["none", "layer norm", "dropout", "BatchStatNorm", "BatchNorm1d", "mean of the batch"],
)
@pytest.mark.parametrize("vectorised", [True, False])
def test_what_a_prediction_depends_on_is_found_by_trying(
    make: Callable[[], nn.Module], kind: str, operators: str, vectorised: bool
) -> None:
    """And the inductive reading is the same alone and in company; a head of zeros does not hide anything."""
    row = flat(make)
    method, batch = method_of(row).eval(), episodes(row)
    nn.init.zeros_(method.backbone[-1].weight)  # type: ignore[index, arg-type]
    episode = item(batch, 0)
    assert company(method) is None
    found = company(method, episode)
    assert found is not None
    assert (found.kind, found.operators) == (kind, operators)
    both = readings(method, batch, 1, BATCH_NORMS, "auto" if vectorised else "loop")
    assert both["inductive"].shape == both["transductive"].shape == (TASKS, 2)

    state = method.adapt(episode.support)
    alone = Episode(episode.support, Examples(episode.query.x[:1], episode.query.y[:1], WAYS))
    others = Episode(
        episode.support, Examples(torch.cat([episode.query.x[:1], episode.query.x[1:].neg()]), episode.query.y, WAYS)
    )
    expected = predict(method, state, episode, "inductive")[:1]
    for other in (alone, others):
        torch.testing.assert_close(predict(method, state, other, "inductive")[:1], expected, rtol=1e-9, atol=1e-9)
    changed = predict(method, state, others)[:1] - predict(method, state, episode)[:1]
    assert bool(changed.abs().max() > 1e-4) == (kind != "none")


@pytest.mark.parametrize("make", [no_stats(nn.BatchNorm1d, 8), AcrossTheBatch], ids=["BatchNorm1d", "mean of the batch"])
def test_adapt_gives_an_image_the_same_probabilities_alone_and_in_company(make: Callable[[], nn.Module]) -> None:
    row = flat(make)
    method, batch = method_of(row).eval(), episodes(row)
    support, query = item(batch, 0).support, batch.query.x[0]
    together = classify(method, support, query, 2, "inductive")
    one = torch.cat([classify(method, support, x[None], 2, "inductive") for x in query])
    torch.testing.assert_close(one, together, rtol=1e-9, atol=1e-9)
    assert (classify(method, support, query, 2, "transductive") - together).abs().max() > 1e-3


# ---- the page ------------------------------------------------------------------------------------------------------


def table() -> str:
    lines = []
    for result, heading in HEADINGS.items():
        names = [f"`{name}`" if name[0].isupper() else name for name, row in ROWS.items() if category(row) == result]
        lines.append(f"**{heading}**\n\n{textwrap.fill(', '.join(names), 128, break_on_hyphens=False)}.\n")
    return "\n".join(lines)


def test_the_page_says_what_the_rows_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- rows -->\n(.*)<!-- end of rows -->", page, re.DOTALL)
    assert found is not None
    assert found[1].strip() == table().strip(), "run `python tests/engine/test_networks.py` and put its output there"


if __name__ == "__main__":
    print(table())
