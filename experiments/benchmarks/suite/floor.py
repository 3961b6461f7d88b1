"""The floor: the floating-point operations that a step must do, over the rate of a large matrix product.

Only products count (linear layers and convolutions); norms, activations and Adam are left out, so the floor is a lower
bound on the time. It does not count transfers between memory and processor either, which bound small networks far above it.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from suite.peers import build
from suite.problems import Problem, converted, episodes


def layer_flops(row: Problem) -> list[int]:
    """Operations of each layer's product in one forward pass of one example; a multiplication and an addition are two."""
    if row.channels == 0:
        return [2 * row.filters, 2 * row.filters**2, 2 * row.filters]
    side, flops = row.side, []
    for block in range(4):
        stride = 2 if row.downsample == "stride" else 1
        side = -(-side // stride)
        flops.append(2 * side**2 * 9 * (row.channels if block == 0 else row.filters) * row.filters)
        side = side // 2 if row.downsample == "max_pool" else side
    features = row.filters if row.downsample == "stride" else row.filters * side**2
    return [*flops, 2 * features * row.ways]


def analytic_flops(row: Problem) -> int:
    """Operations of one meta-training step, from the layers' sizes.

    With f the products of a forward pass: a backward pass takes f for the weights' gradient and f for the inputs' (which the
    first layer does not need). To differentiate the inner step, each of its products is differentiated in both operands, where
    those depend on the parameters: 9 f per inner step in all, and 4 f in the first layer. First order: 3 f and 2 f.
    """
    first, *rest = layer_flops(row)
    inner = (2 * first + 3 * sum(rest)) if row.first_order else (4 * first + 9 * sum(rest))
    outer = 2 * first + 3 * sum(rest)
    return row.tasks * (row.inner_steps * row.support_size * inner + row.query_size * outer)


def counted_flops(row: Problem) -> int:
    """What the plain autograd loop does, counted by PyTorch: one task's operations, times the tasks.

    In second order it is more than `analytic_flops` by one product of the first convolution per inner step: its double
    backward also computes a gradient for the images, which nothing needs.
    """
    competitor = build("autograd", row, torch.float32, "cpu")
    batch = competitor.prepare(converted(episodes(row, 1), torch.float32, "cpu"))
    with FlopCounterMode(display=False) as counter:
        competitor.gradient(batch)
    return row.tasks * counter.get_total_flops()
