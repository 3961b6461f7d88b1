"""BatchStatNorm against the textbook, and whose statistics a network that is `normalised_by_first` takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mamllit.backbones import MLP, BatchStatNorm, Conv4
from mamllit.backbones.first_rows import normalised_by_first

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def by_hand(x: Tensor, counted: Tensor) -> Tensor:
    """Each channel less the mean of `counted`, by its biased standard deviation, eps 1e-3."""
    channels = [(x[:, c] - counted[:, c].mean()) / (counted[:, c].var(correction=0) + 1e-3).sqrt() for c in range(x.shape[1])]
    return torch.stack(channels, 1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 2, 4, 3, dtype=torch.float64) * 3 + 1


def test_by_default_the_statistics_are_the_whole_batchs(x: Tensor) -> None:
    torch.testing.assert_close(BatchStatNorm(2).double()(x), by_hand(x, x), **EXACT)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_the_first_rows_give_the_statistics_and_all_are_normalised(rows: int, x: Tensor) -> None:
    norm = BatchStatNorm(2).double()
    torch.testing.assert_close(normalised_by_first(norm, rows)(x), by_hand(x, x[:rows]), **EXACT)
    torch.testing.assert_close(norm(x), by_hand(x, x), **EXACT)  # the network itself stays as it is


def test_two_numbers_worked_out_by_hand() -> None:
    """Channel 1, 3 | 5: mean 2, variance 1, so 5 becomes 3 / sqrt(1.001)."""
    out = normalised_by_first(BatchStatNorm(1), 2)(torch.tensor([[1.0], [3.0], [5.0]]))
    torch.testing.assert_close(out[:, 0], torch.tensor([-1.0, 1.0, 3.0]) / 1.001**0.5)


@pytest.mark.parametrize(
    "net",
    [
        MLP(48, [5, 4], 3, norm=True),
        Conv4(3, 4, 2, 16, "max_pool", norm_scale=True),
        Conv4(3, 4, 2, 16, "max_pool", implementation="fast"),
        Conv4(3, 16, 2, 16, "stride", implementation="fast"),
    ],
    ids=["MLP", "Conv4 with gamma", "fast Conv4, pooled", "fast Conv4, strided"],
)
def test_behind_the_support_no_prediction_depends_on_its_company(net: nn.Module) -> None:
    side = 4 if isinstance(net, MLP) else 16
    support, query = torch.rand(5, 3, side, side), torch.rand(4, 3, side, side)
    inductive = normalised_by_first(net, 5)
    together = inductive(torch.cat([support, query]))
    torch.testing.assert_close(together[:5], net(support), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[6:7], inductive(torch.cat([support, query[1:2]]))[5:], rtol=1e-4, atol=1e-5)
    assert (net(query)[:3] - net(query[:3])).abs().max() > 1e-3


def test_a_copy_has_the_same_weights_and_its_own_number_of_rows(x: Tensor) -> None:
    norm = BatchStatNorm(2, scale=True).double()
    nn.init.normal_(norm.beta)
    two, three = normalised_by_first(norm, 2), normalised_by_first(norm, 3)
    assert (norm.statistics_rows, two.statistics_rows, three.statistics_rows) == (None, 2, 3)
    assert torch.equal(two.beta, norm.beta)
    assert normalised_by_first(two, 4).statistics_rows == 4


def test_under_vmap_and_grad_an_example_is_one_of_the_inner_batch(x: Tensor) -> None:
    norm = normalised_by_first(BatchStatNorm(2, scale=True).double(), 2)
    batch = torch.stack([x, 2 * x.flip(0) - 1, x**2])

    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(norm, params, (batch,)).pow(3).sum()

    params = dict(norm.named_parameters())
    torch.testing.assert_close(vmap(norm)(batch), torch.stack([by_hand(part, part[:2]) for part in batch]), **EXACT)
    vectorised = vmap(grad(loss), (None, 0))(params, batch)
    for i, part in enumerate(batch):
        for name, value in grad(loss)(params, part).items():
            torch.testing.assert_close(vectorised[name][i], value, **EXACT)


@pytest.mark.parametrize("rows", [0, -3])
def test_fewer_than_one_row_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"rows is {rows}; statistics need at least one example, so it must be >= 1"):
        normalised_by_first(BatchStatNorm(2), rows)


@pytest.mark.parametrize("make", [lambda: BatchStatNorm(2), lambda: MLP(24, [2], 1, norm=True)], ids=["norm", "MLP"])
def test_more_rows_than_examples_are_refused(make: type[nn.Module], x: Tensor) -> None:
    message = r"statistics_rows is 7, but the batch has 6 examples; put the examples that set the statistics first"
    with pytest.raises(ValueError, match=message):
        normalised_by_first(make().double(), 7)(x)
