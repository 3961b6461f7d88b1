"""BatchStatNorm against the textbook, and whose statistics it takes under `statistics_from`."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from mamllit.backbones import BatchStatNorm
from mamllit.backbones.norm import statistics_from

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def by_hand(x: Tensor, counted: Tensor) -> Tensor:
    """Each channel less the mean of `counted`, by its biased standard deviation, eps 1e-3."""
    channels = [
        (x[..., c] - counted[..., c].mean()) / (counted[..., c].var(correction=0) + 1e-3).sqrt() for c in range(x.shape[-1])
    ]
    return torch.stack(channels, -1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 4, 3, 2, dtype=torch.float64) * 3 + 1


def test_by_default_the_statistics_are_the_whole_batchs(x: Tensor) -> None:
    torch.testing.assert_close(BatchStatNorm(2).double()(x), by_hand(x, x), **EXACT)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_the_first_rows_give_the_statistics_and_all_are_normalised(rows: int, x: Tensor) -> None:
    norm = BatchStatNorm(2).double()
    with statistics_from(rows):
        torch.testing.assert_close(norm(x), by_hand(x, x[:rows]), **EXACT)
    torch.testing.assert_close(norm(x), by_hand(x, x), **EXACT)  # and it ends with the block


def test_two_numbers_worked_out_by_hand() -> None:
    """Channel 1, 3 | 5: mean 2, variance 1, so 5 becomes 3 / sqrt(1.001)."""
    with statistics_from(2):
        out = BatchStatNorm(1)(torch.tensor([[1.0], [3.0], [5.0]]))
    torch.testing.assert_close(out[:, 0], torch.tensor([-1.0, 1.0, 3.0]) / 1.001**0.5)


def test_it_nests_and_ends_with_an_error_too(x: Tensor) -> None:
    norm = BatchStatNorm(2).double()
    with statistics_from(2):
        with statistics_from(None):
            torch.testing.assert_close(norm(x), by_hand(x, x), **EXACT)
        with statistics_from(3):
            torch.testing.assert_close(norm(x), by_hand(x, x[:3]), **EXACT)
        torch.testing.assert_close(norm(x), by_hand(x, x[:2]), **EXACT)
    with pytest.raises(RuntimeError, match="inside"), statistics_from(2):
        raise RuntimeError("inside")
    torch.testing.assert_close(norm(x), by_hand(x, x), **EXACT)


def test_under_vmap_and_grad_an_example_is_one_of_the_inner_batch(x: Tensor) -> None:
    norm = BatchStatNorm(2, scale=True).double()
    batch = torch.stack([x, 2 * x.flip(0) - 1, x**2])

    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(norm, params, (batch,)).pow(3).sum()

    params = dict(norm.named_parameters())
    with statistics_from(2):
        torch.testing.assert_close(vmap(norm)(batch), torch.stack([by_hand(part, part[:2]) for part in batch]), **EXACT)
        vectorised = vmap(grad(loss), (None, 0))(params, batch)
        for i, part in enumerate(batch):
            for name, value in grad(loss)(params, part).items():
                torch.testing.assert_close(vectorised[name][i], value, **EXACT)


def test_a_compiled_norm_follows_the_block(x: Tensor) -> None:
    norm = BatchStatNorm(2).double()
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        torch.testing.assert_close(compiled(x), by_hand(x, x), **EXACT)
        with statistics_from(2):
            torch.testing.assert_close(compiled(x), by_hand(x, x[:2]), **EXACT)
        torch.testing.assert_close(compiled(x), by_hand(x, x), **EXACT)


@pytest.mark.parametrize("rows", [0, -3])
def test_fewer_than_one_row_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"rows is {rows}; statistics need at least one example"), statistics_from(rows):
        pass


def test_more_rows_than_examples_are_refused(x: Tensor) -> None:
    message = r"statistics_from\(7\) asks for the statistics of 7 examples, but the batch has 6; put the examples"
    with pytest.raises(ValueError, match=message), statistics_from(7):
        BatchStatNorm(2).double()(x)
