"""Records a function's operators once and replays them, with fewer of them: a back end for `torch.compile` on a CPU.

Autograd sums the gradients of all uses of a tensor. In the derivative of an inner step each layer's input gets two
such parts, each the gradient of a convolution by its input. Their sum is the same gradient for one convolution of twice the
channels: one matrix product in place of two thinner ones, and the largest maps of a network are not written twice and added.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from mamllit.kernels.operators import functions


def recorded(module: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A back end, `torch.compile(..., backend=recorded)`: forward and backward graph as traced, with their sums joined."""
    from torch._dynamo.backends.debugging import aot_eager, boxed_nop  # here, because importing the compiler takes a second

    def replayed(module: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        drop_identities(module.graph)
        join_sums(module.graph)
        call_directly(module.graph)
        module.recompile()
        return boxed_nop(module, inputs)

    return aot_eager(module, inputs, fw_compiler=replayed, bw_compiler=replayed)


def drop_identities(graph: Graph) -> None:
    """Remove what changes nothing: permutations that `vmap` leaves, and `detach`. The graph's outputs stay as they are."""
    for node in list(graph.nodes):
        if node.op != "call_function" or any(user.op == "output" for user in node.users):
            continue
        source, *rest = node.args or (None,)
        permutation = node.target is torch.ops.aten.permute.default and list(rest[0]) == list(range(len(rest[0])))
        if permutation or node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):  # no graph in a replay
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def join_sums(graph: Graph) -> int:
    """Replace each sum of two `conv_input_grad` that are used nowhere else by one `conv_input_grad_sum`; returns how many."""
    joined = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.add.Tensor or node.kwargs:
            continue
        first, second = node.args
        if not (_is_input_gradient(first) and _is_input_gradient(second)) or first is second:
            continue
        if first.args[2:] != second.args[2:] or _shape(node) != _shape(first) or _shape(node) != _shape(second):
            continue
        with graph.inserting_before(node):
            joint = graph.call_function(torch.ops.mamllit.conv_input_grad_sum.default, (*first.args[:2], *second.args))
        joint.meta = dict(node.meta)
        node.replace_all_uses_with(joint)
        for gone in (node, first, second):
            graph.erase_node(gone)
        joined += 1
    return joined


def call_directly(graph: Graph) -> None:
    """Call mamllit's operators as the functions they are: PyTorch's dispatcher takes some 30 us a call."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            node.target = functions.get(node.target.name(), node.target)


def _is_input_gradient(node: Any) -> bool:
    return isinstance(node, Node) and node.target is torch.ops.mamllit.conv_input_grad.default and len(node.users) == 1


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape
