"""What the operators on batches of images share: how they are made, work in blocks, and run over tasks.

Images are [n, H, W, C], a batch of tasks [T, n, H, W, C]; one number per channel is [C] or [T, C], or [(T,) 1, 1, 1, C].
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

# what each operator does, by its name; `mamllit.engine.recording` calls it without PyTorch's dispatcher
functions: dict[str, Callable[..., Any]] = {}
CACHED_BYTES = 2**21  # of one operand, for the tasks that are worked on at once on a CPU


def opaque(name: str, function: Callable[..., Any], schema: str | None = None) -> Any:
    """`function` as an operator that no tracer looks into; it has no derivative and changes no argument."""
    functions[f"mamllit::{name}"] = function
    return custom_op(f"mamllit::{name}", function, mutates_args=(), schema=schema)


def operator(name: str, plain: Callable[..., list[Tensor]], blocks: Callable[..., list[Tensor]], arguments: str) -> Any:
    """`plain` on an accelerator, whose compiler fuses it, and where autograd records; else `blocks`, where no tracer looks in.

    `arguments`: of both, as in a PyTorch schema.
    """
    in_pieces = opaque(name, blocks, f"({arguments}) -> Tensor[]")
    in_pieces.register_fake(plain)

    def run(*values: Any) -> list[Tensor]:
        return in_pieces(*values) if values[0].device.type == "cpu" and not torch.is_grad_enabled() else plain(*values)

    return run


def tasks_at_once(x: Tensor) -> int:
    """As many tasks of `x` [T, ...] as stay in the cache of a CPU."""
    return balanced(len(x), CACHED_BYTES // (x[0].numel() * x.element_size()))


def balanced(tasks: int, wanted: int) -> int:
    """A size of blocks of tasks, about `wanted`, that are as many for each thread and as equal as can be.

    A batched product gives whole tasks to threads: with two, a block of five takes as long as one of six, and one of one
    task leaves a thread idle or cuts a product in two (two threads, 20-way Omniglot: a third of the convolutions' time).
    """
    threads = torch.get_num_threads()
    size = max(wanted // threads, 1) * threads
    each = -(-tasks // -(-tasks // size))
    return min(-(-each // threads) * threads, tasks)


def in_blocks(function: Callable[..., list[Tensor]], large: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """`function`, for so many tasks at a time as stay in the cache of a CPU.

    Its first results are written into the tensors in `large`; the others, which are small, are returned.
    """
    size = tasks_at_once(large[0]) if large[0].dim() == 5 else len(large[0])
    if size == len(large[0]):
        return function(*arguments, *large)[len(large) :]
    parts = [
        value.split(size) if isinstance(value, Tensor) and value.dim() == 5 else itertools.repeat(value)
        for value in (*arguments, *large)
    ]
    small = [function(*part)[len(large) :] for part in zip(*parts, strict=False)]
    return [torch.cat(parts) for parts in zip(*small, strict=True)]


def over_tasks(
    function: Any, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule of an autograd function under `vmap`: the new dimension comes first, and is folded into one that is there."""
    size, moved = info.batch_size, []
    for value, dim in zip(args, in_dims, strict=True):
        if isinstance(value, Tensor) and (dim is not None or value.dim() > 1):
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        moved.append(value)
    nested = [value.shape[1] for value in moved if isinstance(value, Tensor) and value.dim() == 6]
    if nested:
        moved = [_folded(value, size, nested[0]) for value in moved]
    out = function.apply(*moved)
    return tuple(value.unflatten(0, (size, nested[0])) for value in out) if nested else out, (0,) * len(out)


def _folded(value: Any, size: int, tasks: int) -> Any:
    """[B, T, ...] -> [B * T, ...]; a shift [B, C] of all tasks is repeated for each, one [C] of everybody stays."""
    if not isinstance(value, Tensor) or value.dim() == 1:
        return value
    if value.dim() == 2:
        value = value.unsqueeze(1).expand(size, tasks, -1)
    return value.flatten(0, 1)
