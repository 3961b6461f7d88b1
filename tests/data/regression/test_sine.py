"""Sine tasks: their ranges, their formula, and the evaluation sets of the two protocols."""

import math

import pytest
import torch

from mamllit.core.episode import EpisodeBatch
from mamllit.data import SineDataModule


def meta_batch(data: SineDataModule) -> EpisodeBatch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_a_meta_batch_has_the_papers_shapes() -> None:
    batch = meta_batch(SineDataModule(seed=0))
    assert batch.number.tolist() == list(range(25))
    for part in batch.episodes:
        assert part.x.shape == part.y.shape == (25, 10, 1)
        assert part.x.dtype == part.y.dtype == torch.float32


def test_shots_and_queries_set_the_sizes_of_the_two_parts() -> None:
    support, query = meta_batch(SineDataModule(shots=3, queries=7, meta_batch_size=4, seed=0)).episodes
    assert support.x.shape == support.y.shape == (4, 3, 1)
    assert query.x.shape == query.y.shape == (4, 7, 1)


def test_amplitude_phase_and_x_fill_their_ranges() -> None:
    drawn = SineDataModule().draw(0, "train", 10, 10, 0, 2000)
    for value, low, high in (
        (drawn.amplitude, 0.1, 5.0),
        (drawn.phase, 0.0, math.pi),
        (drawn.x[:, :10], -5.0, 5.0),
        (drawn.x[:, 10:], -5.0, 5.0),
    ):
        width = high - low
        assert low <= value.min() < low + 0.01 * width
        assert high - 0.01 * width < value.max() <= high
        assert value.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
        assert value.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05)


def test_every_point_of_a_task_lies_on_its_sine() -> None:
    data = SineDataModule()
    drawn = data.draw(0, "test", 4, 3, 5, 6)
    batch = data.build(drawn)
    assert batch.number.tolist() == [5, 6, 7, 8, 9, 10]
    for t in range(6):
        for part, points in zip(batch.episodes, (drawn.x[t, :4, 0], drawn.x[t, 4:, 0]), strict=True):
            assert torch.equal(part.x[t, :, 0], points)
            for x, y in zip(part.x[t, :, 0].tolist(), part.y[t, :, 0].tolist(), strict=True):
                expected = drawn.amplitude[t].item() * math.sin(x - drawn.phase[t].item())
                assert y == pytest.approx(expected, abs=1e-5)


def test_grid_queries_are_evenly_spaced_in_evaluation_only() -> None:
    data = SineDataModule(query_points="grid", seed=0)
    batch = data.episodes(data.evaluation_sets("test")[3], 0, 3)
    assert torch.equal(batch.episodes.query.x[..., 0], torch.linspace(-5, 5, 100).expand(3, 100))
    assert len(batch.episodes.support.x.unique()) == 15
    random = SineDataModule(seed=0)
    same = random.episodes(random.evaluation_sets("test")[3], 0, 3)
    assert torch.equal(same.episodes.support.x, batch.episodes.support.x)  # the option moves the query points alone
    assert len(same.episodes.query.x.unique()) > 290
    assert torch.equal(meta_batch(data).episodes.query.x, meta_batch(random).episodes.query.x)


def test_evaluation_sets_are_two_protocols_times_three_shots() -> None:
    sets = SineDataModule().evaluation_sets("test")
    assert [(s.name, s.protocol, s.split, s.shots, s.queries, s.episodes) for s in sets] == [
        ("paper/5-shot", "paper", "test", 5, 5, 600),
        ("paper/10-shot", "paper", "test", 10, 10, 600),
        ("paper/20-shot", "paper", "test", 20, 20, 600),
        ("standard/5-shot", "standard", "test", 5, 100, 2000),
        ("standard/10-shot", "standard", "test", 10, 100, 2000),
        ("standard/20-shot", "standard", "test", 20, 100, 2000),
    ]


def test_another_number_of_test_episodes_shows_in_the_name() -> None:
    sets = SineDataModule(test_shots=[10], test_episodes=600).evaluation_sets("test")
    assert [(s.name, s.episodes) for s in sets] == [("paper", 600), ("standard[600]", 600)]
    sets = SineDataModule(test_shots=[5, 10], protocols=["paper"], test_episodes=50).evaluation_sets("test")
    assert [(s.name, s.episodes) for s in sets] == [("paper[50]/5-shot", 50), ("paper[50]/10-shot", 50)]


def test_validation_uses_the_training_shots_and_the_standard_queries() -> None:
    (val,) = SineDataModule(shots=7, val_episodes=30).evaluation_sets("val")
    assert (val.name, val.split, val.shots, val.queries, val.episodes) == ("val", "val", 7, 100, 30)


def test_evaluation_tasks_do_not_depend_on_the_training_seed() -> None:
    one, other, moved = SineDataModule(seed=0), SineDataModule(seed=1), SineDataModule(seed=0, eval_seed=1)
    evaluation = one.evaluation_sets("test")[0]
    assert torch.equal(one.episodes(evaluation).episodes.support.y, other.episodes(evaluation).episodes.support.y)
    assert not torch.equal(one.episodes(evaluation).episodes.support.y, moved.episodes(evaluation).episodes.support.y)
    assert not torch.equal(meta_batch(one).episodes.support.y, meta_batch(other).episodes.support.y)


def test_the_seed_defaults_to_that_of_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert SineDataModule().seed == 17
    assert SineDataModule(seed=3).seed == 3
    assert torch.equal(meta_batch(SineDataModule()).episodes.query.y, meta_batch(SineDataModule(seed=17)).episodes.query.y)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert SineDataModule().seed == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query_points": "even"}, r"query_points is 'even'; it must be 'random' or 'grid'"),
        ({"test_shots": []}, r"test_shots is \[\]; it needs at least one number of shots >= 1"),
        ({"test_shots": [5, 0]}, r"test_shots is \[5, 0\]; it needs at least one number of shots >= 1"),
        ({"shots": 0}, r"shots is 0; it must be >= 1"),
        ({"queries": 0}, r"queries is 0; it must be >= 1"),
        ({"meta_batch_size": 0}, r"meta_batch_size is 0; it must be >= 1"),
        ({"standard_queries": 0}, r"standard_queries is 0; it must be >= 1"),
        ({"val_episodes": 1}, r"val_episodes is 1; it must be >= 2"),
        ({"test_episodes": 1}, r"test_episodes is 1; it must be >= 2"),
        ({"test_episodes": {"standard": 1}}, r"test_episodes is 1; it must be >= 2"),
        ({"test_episodes": {"papre": 9}}, r"protocol 'papre' is unknown; choose from \['paper', 'standard'\]"),
        ({"eval_batch_size": 0}, r"eval_batch_size is 0; it must be >= 1"),
        ({"num_workers": -1}, r"num_workers is -1; it must be >= 0"),
        ({"eval_seed": -1}, r"eval_seed is -1; it must be >= 0"),
        ({"seed": -1}, r"seed is -1; it must be >= 0"),
        ({"protocols": ["papre"]}, r"protocol 'papre' is unknown; choose from \['paper', 'standard'\]"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SineDataModule(**wrong)


def test_several_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"shots is 0; .*; queries is -1; .*; protocol 'x' is unknown"):
        SineDataModule(shots=0, queries=-1, protocols=["paper", "x"])


def test_a_revealed_task_stands_beside_x_and_nothing_else_changes() -> None:
    plain, data = SineDataModule(seed=3), SineDataModule(seed=3, reveal_task=True)
    evaluation = data.evaluation_sets("test")[0]
    drawn = data.draw(data.eval_seed, "test", evaluation.shots, evaluation.queries, 0, 4)
    for own, other in zip(data.episodes(evaluation, 0, 4).episodes, plain.episodes(evaluation, 0, 4).episodes, strict=True):
        assert torch.equal(own.x[..., :1], other.x)
        assert torch.equal(own.y, other.y)
        x, amplitude, phase = own.x.unbind(-1)
        torch.testing.assert_close(amplitude * torch.sin(x - phase), own.y[..., 0])
    points = torch.linspace(-5, 5, 7)
    revealed = data.inputs(evaluation, 2, points)
    assert torch.equal(revealed[:, 0], points)
    assert revealed[:, 1:].unique(dim=0).tolist() == [[drawn.amplitude[2].item(), drawn.phase[2].item()]]
    assert torch.equal(plain.inputs(evaluation, 2, points), points[:, None])
