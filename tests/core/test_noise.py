"""Numbers that belong to an episode: what they are distributed like, and that nothing but the episode decides them."""

import pytest
import torch
from torch import Tensor

from mamllit.core import noise
from mamllit.core.episode import Examples
from mamllit.core.tree import vmap
from mamllit.data import SineDataModule

LIKE = torch.empty(0, dtype=torch.float64)


def supports(tasks: int = 40) -> Examples:
    return Examples(torch.randn(tasks, 5, 2), torch.randn(tasks, 5, 1))


def draw(support: Examples, stream: int = 0) -> Tensor:
    return noise.normal(noise.episode_key(support), stream, (3, 500), LIKE)


def test_uniform_fills_the_interval_evenly_and_never_reaches_its_ends() -> None:
    values = noise.uniform(torch.tensor(7), 0, (200_000,), LIKE)
    assert values.shape == (200_000,)
    assert 0 < values.min() < values.max() < 1
    counts = torch.histc(values, 50, 0, 1)
    chi_squared = ((counts - 4000) ** 2 / 4000).sum()
    assert 25 < chi_squared < 85  # 49 degrees of freedom: outside with a chance of a few in ten thousand


def test_normal_and_logistic_have_their_moments() -> None:
    values = vmap(draw)(supports())
    assert values.dtype == torch.float64
    assert values.mean().abs() < 0.02
    assert (values.std() - 1).abs() < 0.01
    assert (values**4).mean().item() == pytest.approx(3, abs=0.1)
    values = noise.logistic(torch.tensor(3), 0, (200_000,), LIKE)
    assert values.var().item() == pytest.approx(torch.pi**2 / 3, rel=0.02)


def test_tasks_and_streams_are_independent() -> None:
    batch = supports()
    values = torch.stack([vmap(lambda support, stream=stream: draw(support, stream))(batch) for stream in range(3)])
    correlation = torch.corrcoef(values.reshape(3 * 40, -1)) - torch.eye(120)
    assert correlation.abs().max() < 5 / 1500**0.5
    # nor is one task's sequence another's, moved along
    one, other = values[0, 0].flatten(), values[0, 1].flatten()
    assert not torch.isin(one, other).float().mean() > 0.01


def test_a_task_has_the_same_numbers_alone_in_a_chunk_and_in_the_batch() -> None:
    batch = supports(6)
    together = vmap(draw)(batch)
    for start, stop in ((0, 4), (4, 6)):
        assert torch.equal(vmap(draw)(Examples(batch.x[start:stop], batch.y[start:stop], batch.ways)), together[start:stop])
    assert all(torch.equal(draw(Examples(batch.x[i], batch.y[i], batch.ways)), together[i]) for i in range(6))


def test_the_generator_of_the_process_neither_matters_nor_moves() -> None:
    batch = supports(2)
    before = torch.get_rng_state()
    one = vmap(draw)(batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(17)
    assert torch.equal(vmap(draw)(batch), one)


def test_every_value_and_its_place_count() -> None:
    x, y = torch.randn(4, 3), torch.arange(4)
    keys = {int(noise.episode_key(Examples(x, y, 4)))}
    for changed in (
        Examples(x.flip(0), y, 4),
        Examples(x, y.flip(0), 4),
        Examples(x + 1e-6, y, 4),
        Examples(x.transpose(0, 1).reshape(4, 3), y, 4),
        Examples(x.new_zeros(4, 3), y, 4),
        Examples(x.new_zeros(4, 3), y * 0, 4),
    ):
        keys.add(int(noise.episode_key(changed)))
    assert len(keys) == 7
    assert all(0 <= key < 2**32 for key in keys)


def test_episodes_of_a_stream_have_keys_of_their_own() -> None:
    batch = SineDataModule(seed=0).build(SineDataModule().draw(0, "train", 10, 10, 0, 4000))
    assert len(vmap(noise.episode_key)(batch.episodes.support).unique()) >= 3998  # by chance 0.002 pairs agree


def test_the_number_type_of_the_inputs_does_not_matter() -> None:
    """A float64 test and a float32 run see the same bits."""
    batch = supports(3)
    double = Examples(batch.x.double(), batch.y.double())
    assert torch.equal(vmap(noise.episode_key)(batch), vmap(noise.episode_key)(double))
