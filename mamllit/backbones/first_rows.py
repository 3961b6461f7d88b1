"""Whose statistics a batch norm uses decides what a result means.

By default a batch is normalised by all of itself, as in the MAML paper: the prediction for a query image then depends on the
other query images (transductive). A network `normalised_by_first(rows)` uses only the statistics of the first rows of a batch:
with the support in front, each query image is predicted alone (inductive).
"""

import copy
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def normalised_by_first(module: Module, rows: int) -> Module:
    """A copy of `module` whose batch norms use the statistics of the first `rows` examples of a batch, and normalise all.

    The norms are those modules that have an attribute `statistics_rows`; `module` itself stays as it is. Under
    `torch.func.vmap` an example is one of the function that is vectorised.

    Raises:
        ValueError: for fewer than one row.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; statistics need at least one example, so it must be >= 1")
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "statistics_rows"):
            part.statistics_rows = rows  # type: ignore[assignment]
    return module


def first_rows(x: Tensor, rows: int | None) -> Tensor:
    """The first `rows` examples of `x` [n, ...]; all for None. Raises `ValueError` where there are fewer."""
    if rows is None:
        return x
    found = x.shape[0]  # len() would fix the size of a batch in torch.export
    if rows > found:
        raise ValueError(
            f"statistics_rows is {rows}, but the batch has {found} examples; put the examples that set the statistics first"
        )
    return x[:rows]
