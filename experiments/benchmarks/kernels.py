"""What each operator of mamllit.kernels brings to a whole step: python experiments/benchmarks/kernels.py --rows mini-1s

One process; the step as `mamllit fit` runs it (recorded), all on the fast network, with one operator after another replaced by
plain PyTorch, and the plain network, in turns. A ratio above 1 is what leaving the operator out costs. Times are those of the
process's CPUs, so that other work on the machine disturbs them little with one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from suite.problems import ROWS, few, method, network
from suite.problems import episodes as episodes_of
from torch import Tensor, nn

from mamllit.backbones import fast
from mamllit.engine import cpu
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.kernels.norm.normalise import normalise

IMAGES = ["omniglot-5w1s-1q", "omniglot-5w1s-15q", "omniglot-20w1s", "mini-1s"]


def convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """SAME convolution by PyTorch."""
    height, width = (max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0) for size in x.shape[-2:])
    return F.conv2d(F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)), weight, None, stride)


def norm_relu(x: Tensor, norm: nn.Module, bias: Tensor, pool: bool) -> Tensor:
    """Norm, ReLU and pooling by PyTorch."""
    z = F.relu(norm(x + bias.view(-1, 1, 1)))
    return F.max_pool2d(z, 2) if pool else z


def pooled_norm(x: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The norm as one operator, the pooling as another."""
    return F.max_pool2d(normalise(x, shift, eps, relu=True).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def no_products(x: Tensor) -> Any:
    return nullcontext()


LEFT_OUT: dict[str, list[tuple[Any, str, Callable[..., Any]]]] = {
    "nothing": [],
    "kernels/conv": [(fast, "convolution", convolution)],
    "kernels/norm and norm_pool": [(fast, "norm_relu", norm_relu)],
    "kernels/norm_pool": [(fast, "pooled_norm", pooled_norm)],
    "kernels/matmul": [(cpu, "fast_products", no_products)],
    "all of them": [(fast, "convolution", convolution), (fast, "norm_relu", norm_relu), (cpu, "fast_products", no_products)],
}


@contextmanager
def without(left_out: str) -> Iterator[None]:
    """Within, plain PyTorch stands in for what is left out."""
    before = [(module, name, getattr(module, name)) for module, name, _ in LEFT_OUT[left_out]]
    for module, name, plain in LEFT_OUT[left_out]:
        setattr(module, name, plain)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def measure(name: str, quick: bool, rounds: int) -> dict[str, float]:
    """Seconds of a step, median of the rounds, by what is left out."""
    row = few(ROWS[name]) if quick else ROWS[name]
    batch = episodes_of(row)
    chosen = [left_out for left_out in LEFT_OUT if left_out != "kernels/norm_pool" or row.downsample == "max_pool"]
    steps = {left_out: MetaGradient(method(row, network(row)), compiled=True) for left_out in chosen}
    times: dict[str, list[float]] = {left_out: [] for left_out in steps}
    for number in range(rounds + 2):  # two to record, and to get used to it
        for left_out, step in steps.items():
            with without(left_out):
                start = time.process_time()
                step(batch)
            if number > 1:
                times[left_out].append(time.process_time() - start)
    return {left_out: statistics.median(own) for left_out, own in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=IMAGES, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="few tasks: tries the script out, the numbers mean nothing")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    print("| row | left out | ms | ratio |\n| --- | --- | --- | --- |")
    for name in asked.rows:
        seconds = measure(name, asked.quick, asked.rounds)
        for left_out, own in seconds.items():
            print(f"| {name} | {left_out} | {1000 * own:.1f} | {own / seconds['nothing']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
