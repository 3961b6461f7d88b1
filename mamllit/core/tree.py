"""Trees: tuples, lists, dicts and dataclasses, nested, whose leaves are tensors; whatever else lies in them is static.

An episode is such a tree, its number of ways static. What runs over many episodes (`vmap`, chunks, `torch.compile`) deals with
flat tensors; a `Structure` puts them back, can be compared and hashed, and so is part of the key of what is compiled.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch.func
from torch import Tensor

T = TypeVar("T")


class Structure(NamedTuple):
    """What is left of a tree without its tensors: the `kind` of its root, the `names` of its parts, and their structures.

    The structure of a tensor is `LEAF`; that of anything static holds it as its only name.
    """

    kind: type | None
    names: tuple[Hashable, ...]
    parts: tuple["Structure", ...]

    @property
    def tensors(self) -> int:
        """How many tensors belong into it."""
        return 1 if self is LEAF else sum(part.tensors for part in self.parts)


LEAF = Structure(None, (), ())


class _Static:
    """The kind of what is no tensor and holds none."""


def flatten(tree: Any) -> tuple[list[Tensor], Structure]:
    """The tensors of a tree, in order, and its structure.

    Raises:
        TypeError: for something static that cannot be hashed.
    """
    tensors: list[Tensor] = []
    return tensors, _structure(tree, tensors)


def _structure(tree: Any, tensors: list[Tensor]) -> Structure:
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return LEAF
    kind = type(tree)
    if isinstance(tree, dict):
        return Structure(kind, tuple(tree), tuple(_structure(part, tensors) for part in tree.values()))
    if isinstance(tree, (tuple, list)):
        return Structure(kind, (), tuple(_structure(part, tensors) for part in tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        names = _fields(kind)  # type: ignore[arg-type]
        return Structure(kind, names, tuple(_structure(getattr(tree, name), tensors) for name in names))
    if not isinstance(tree, Hashable):
        raise TypeError(f"a tree holds a {kind.__name__}, which is neither a tensor nor hashable; make it a tuple or a tensor")
    return Structure(_Static, (tree,), ())


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def unflatten(structure: Structure, tensors: Iterable[Tensor]) -> Any:
    """The tree of this structure with these tensors."""
    return _built(structure, iter(tensors))


def _built(structure: Structure, tensors: Iterator[Tensor]) -> Any:
    kind: Any = structure.kind
    names, parts = structure.names, structure.parts
    if kind is None:
        return next(tensors)
    if kind is _Static:
        return names[0]
    built = [_built(part, tensors) for part in parts]
    if issubclass(kind, dict):
        return kind(zip(names, built, strict=True))
    if is_dataclass(kind):
        return kind(*built)  # type: ignore[operator]
    return kind(*built) if hasattr(kind, "_fields") else kind(built)


def tree_map(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The tree with `function` of each tensor."""
    tensors, structure = flatten(tree)
    return unflatten(structure, map(function, tensors))


def take(tree: T, start: int, stop: int) -> T:
    """Rows `start` to `stop` of every tensor: some tasks of a batch."""
    return tree_map(lambda tensor: tensor[start:stop], tree)


def item(tree: T, i: int) -> T:
    """Row `i` of every tensor: one task of a batch."""
    return tree_map(lambda tensor: tensor[i], tree)


def count(tree: Any) -> int:
    """Rows of the first tensor: the tasks of a batch."""
    return flatten(tree)[0][0].shape[0]


def vmap(
    function: Callable[..., Any], in_dims: int | Sequence[int | None] | None = 0, randomness: str = "different"
) -> Callable[..., Any]:
    """`torch.func.vmap` for functions of trees: over the first dimension of every tensor, and of static parts as they are.

    `in_dims`: 0 or None for each argument, or one for all; an argument with None is the same for every task.
    """

    def run(*trees: Any) -> Any:
        dims = [in_dims] * len(trees) if in_dims is None or isinstance(in_dims, int) else list(in_dims)
        flat = [flatten(tree) for tree in trees]
        structures, widths = [structure for _, structure in flat], [len(tensors) for tensors, _ in flat]
        found: list[Structure] = []

        def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
            rest = iter(tensors)
            out, structure = flatten(function(*(_built(own, rest) for own in structures)))
            found[:] = [structure]
            return tuple(out)

        spread = tuple(dim for dim, width in zip(dims, widths, strict=True) for _ in range(width))
        mapped = torch.func.vmap(of_tensors, in_dims=spread, randomness=randomness)
        out = mapped(*(tensor for tensors, _ in flat for tensor in tensors))
        return unflatten(found[0], out)

    return run
