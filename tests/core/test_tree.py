"""Trees of tensors: flattened and put back, mapped over tasks, and told apart by what is static in them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad

from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import LEAF, count, flatten, item, take, tree_map, unflatten, vmap


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Named:
    values: Tensor
    label: str
    more: tuple[Any, ...] = ()


def tree() -> Any:
    return {"a": [torch.ones(3, 2), None], "b": Pair(Named(torch.arange(3), "x", (torch.zeros(3),)), 7)}


def test_a_tree_comes_back_as_it_was() -> None:
    tensors, structure = flatten(tree())
    assert [list(tensor.shape) for tensor in tensors] == [[3, 2], [3], [3]]
    back = unflatten(structure, tensors)
    assert structure.tensors == 3 and flatten(back)[1] == structure
    assert isinstance(back["b"], Pair) and isinstance(back["b"].first, Named)
    assert back["b"].first.label == "x" and back["b"].second == 7 and back["a"][1] is None
    assert all(one is two for one, two in zip(flatten(back)[0], tensors, strict=True))
    assert flatten(torch.ones(1))[1] is LEAF and flatten(())[0] == []


def test_rows_are_taken_from_every_tensor() -> None:
    assert count(tree()) == 3
    assert [len(tensor) for tensor in flatten(take(tree(), 1, 3))[0]] == [2, 2, 2]
    assert item(tree(), 2)["b"].first.values.item() == 2
    assert tree_map(lambda tensor: tensor + 1, tree())["b"].first.more[0].tolist() == [1, 1, 1]


def test_structures_tell_static_parts_apart() -> None:
    """They are part of the key of what is compiled: the same tensors with another number of ways are another episode."""
    x, y = torch.rand(6, 1), torch.arange(2).repeat(3)
    two, three = (flatten(Episode(Examples(x, y, ways), Examples(x, y, ways)))[1] for ways in (2, 3))
    assert two != three and len({two, three, flatten(Episode(Examples(x + 1, y, 2), Examples(x, y, 2)))[1]}) == 2


def test_what_is_static_must_be_hashable() -> None:
    with pytest.raises(TypeError, match="a tree holds a set, which is neither a tensor nor hashable; make it a tuple"):
        flatten({"a": {1, 2}})


def test_vmap_maps_trees_and_leaves_what_is_shared() -> None:
    x, weight = torch.rand(3, 4, 2), torch.rand(2)
    batch = Examples(x, torch.arange(2).repeat(3, 2), 2)

    def one(examples: Examples, weight: dict[str, Tensor]) -> tuple[Examples, dict[str, Tensor]]:
        assert examples.ways == 2 and examples.per_class == 2
        return examples, {"sum": grad(lambda w: (examples.x @ w).square().sum())(weight["w"])}

    again, sums = vmap(one, (0, None))(batch, {"w": weight})
    assert again.ways == 2 and torch.equal(again.x, x)
    by_hand = torch.stack([2 * part.T @ (part @ weight) for part in x])
    torch.testing.assert_close(sums["sum"], by_hand)
