"""Which modules are known to be right under `vmap`, and the operators of PyTorch that a network is run with."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamllit.engine.plain_norms import PlainNorms

Operators = Literal["torch", "math", "plain"]  # as they are; attention as products; norms as sums and products, too
TOLERANCE = 1e-6  # of a relative difference in float64; rounding leaves 1e-15 to 1e-10

# Modules of torch.nn that tests/engine/test_networks.py finds right under `vmap`, whatever their settings
_RIGHT = """
    Sequential ModuleList ModuleDict ParameterList ParameterDict Identity Flatten Unflatten Linear Bilinear Conv1d
    Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Unfold Fold ReLU ReLU6 ELU SELU CELU GELU SiLU Mish
    Hardswish Hardtanh LeakyReLU LogSigmoid PReLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Hardshrink GLU
    Softmax LogSoftmax Softmin Softmax2d Threshold GroupNorm RMSNorm LocalResponseNorm CosineSimilarity MaxPool1d
    MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d ZeroPad1d ZeroPad2d ConstantPad1d
    ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d CircularPad1d CircularPad2d
    PixelShuffle PixelUnshuffle ChannelShuffle Upsample UpsamplingNearest2d UpsamplingBilinear2d
"""
KNOWN: frozenset[type[nn.Module]] = frozenset(getattr(nn, name) for name in _RIGHT.split())
OWN = ("mamllit.backbones.", "mamllit.methods.")  # each class there has a row in the conformance tests


def unknown(method: nn.Module) -> dict[str, nn.Module]:
    """The modules, by name, that are not known to be right under `vmap`: of another class, or changed (a parametrisation)."""
    return {name: module for name, module in method.named_modules() if not _is_known(module)}


def _is_known(module: nn.Module) -> bool:
    if f"{type(module).__module__}.".startswith(OWN):
        return True
    names = {name for name, _ in module.named_parameters(recurse=False)}
    plain = names <= {"weight", "bias"} or isinstance(module, nn.ParameterList | nn.ParameterDict)
    return type(module) in KNOWN and plain and not dict(module.named_buffers(recurse=False))


@contextmanager
def running(operators: Operators, statistics_rows: int | None = None) -> Iterator[None]:
    """Within, attention is computed by products, which PyTorch can differentiate twice, and norms as `operators` says.

    `statistics_rows`: PyTorch's batch norms, where they are plain, use the statistics of the first so many examples.
    """
    if operators == "torch":
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), PlainNorms(statistics_rows) if operators == "plain" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; inf where one is not finite, 0 where both are zero."""
    difference = (found - expected).norm()
    if not difference.isfinite():
        return float("inf")
    return float(difference / expected.norm().clamp_min(torch.finfo(expected.dtype).tiny))
