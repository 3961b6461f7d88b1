"""One row per module of torch.nn and network of mamllit: how it is meta-trained, or the sentence that refuses it.

The table of docs/networks.md is made from these rows: `python tests/helpers/network_rows.py` prints it.
"""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mamllit.backbones import MLP, BatchStatNorm, Conv4, Hog
from mamllit.backbones.conv_pairs import ConvPairs
from mamllit.backbones.heads import CosineHead
from mamllit.backbones.koch import KochNet
from mamllit.backbones.resnet12 import ResNet12
from mamllit.backbones.statistician import StatisticianDecoder, StatisticianEncoder
from mamllit.backbones.timm_net import FixedNorm
from mamllit.core.episode import Episode, Examples
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
    "mamllit KochNet": Row(
        lambda: nn.Sequential(KochNet(2, 23, (2, 2, 2, 2), (2, 2, 2, 2), 8, "plain"), nn.Linear(8, WAYS)), (2, 23, 23)
    ),
    "mamllit StatisticianEncoder": Row(lambda: nn.Sequential(StatisticianEncoder((2, 2, 2)), nn.Linear(32, WAYS)), (1, 28, 28)),
    "mamllit StatisticianDecoder": Row(
        lambda: nn.Sequential(StatisticianDecoder(12, (2, 2, 2)), nn.Flatten(), nn.Linear(784, WAYS)), (12,)
    ),
    "mamllit ResNet12": Row(lambda: ResNet12(2, WAYS, 16, (3, 3, 3, 3)), (2, 16, 16)),
    "mamllit CosineHead": Row(lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), CosineHead(8, WAYS)), (12,)),
    "mamllit Hog": Row(lambda: nn.Sequential(Hog(4), nn.Linear(324, WAYS)), (2, 16, 16)),
    "mamllit FixedNorm": images(lambda: FixedNorm(nn.BatchNorm2d(4))),
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


def category(row: Row) -> str:
    return row.result if row.result in HEADINGS else "refused"


def table() -> str:
    lines = []
    for result, heading in HEADINGS.items():
        names = [f"`{name}`" if name[0].isupper() else name for name, row in ROWS.items() if category(row) == result]
        lines.append(f"**{heading}**\n\n{textwrap.fill(', '.join(names), 128, break_on_hyphens=False)}.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
