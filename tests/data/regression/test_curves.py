"""Sines and lines, and sines with a frequency: ranges, formulas, noise, fixed training tasks."""

import math

import pytest
import torch

from mamllit.core.episode import EpisodeBatch
from mamllit.data import FrequencySineDataModule, SineLineDataModule
from mamllit.data.regression.curves import CurveDataModule

both = pytest.mark.parametrize("kind", [SineLineDataModule, FrequencySineDataModule])


def meta_batch(data: CurveDataModule) -> EpisodeBatch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_shapes_of_a_meta_batch() -> None:
    for data, tasks, shots, queries in ((SineLineDataModule(seed=0), 25, 5, 15), (FrequencySineDataModule(seed=0), 10, 10, 10)):
        batch = meta_batch(data)
        assert batch.number.tolist() == list(range(tasks))
        assert batch.episodes.support.x.shape == batch.episodes.support.y.shape == (tasks, shots, 1)
        assert batch.episodes.query.x.shape == batch.episodes.query.y.shape == (tasks, queries, 1)
        assert batch.episodes.query.y.dtype == torch.float32


def test_half_of_the_tasks_are_lines_and_half_are_sines() -> None:
    data = SineLineDataModule(noise_std=0)
    drawn = data.draw(0, "test", 5, 15, 0, 4000)
    x, y, line = drawn.x[..., 0], drawn.y[..., 0], drawn.task[:, 0] >= 0.5
    assert line.float().mean().item() == pytest.approx(0.5, abs=0.03)
    slopes = (y[:, 1:] - y[:, :1]) / (x[:, 1:] - x[:, :1])
    slope = slopes[line].median(1).values
    intercept = y[line].mean(1) - slope * x[line].mean(1)
    for value in (slope, intercept):
        assert value.abs().max() <= 3.01
        assert value.std().item() == pytest.approx(6 / math.sqrt(12), rel=0.05)
    amplitude, phase = 0.1 + 4.9 * drawn.task[~line, 1, None], math.pi * drawn.task[~line, 2, None]
    torch.testing.assert_close(y[~line], amplitude * torch.sin(x[~line] + phase), rtol=1e-5, atol=1e-5)


def test_a_frequency_sine_has_its_formula() -> None:
    data = FrequencySineDataModule(noise=0, training_tasks=None)
    drawn = data.draw(0, "train", 10, 10, 0, 3000)
    a, b, w = 0.1 + 4.9 * drawn.task[:, 0], 2 * math.pi * drawn.task[:, 1], 0.5 + 1.5 * drawn.task[:, 2]
    torch.testing.assert_close(drawn.y[..., 0], a[:, None] * torch.sin(w[:, None] * drawn.x[..., 0] - b[:, None]))
    for value, low, high in ((a, 0.1, 5.0), (b, 0, 2 * math.pi), (w, 0.5, 2.0), (drawn.x, -5, 5)):
        assert low <= value.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < value.max() <= high


def test_the_noise_has_its_size_and_place() -> None:
    data = SineLineDataModule()
    drawn = data.draw(0, "test", 5, 15, 0, 2000)
    error = drawn.y[..., 0] - data.curve(drawn.task, drawn.x[..., 0])
    assert error[:, :5].std().item() == pytest.approx(0.3, rel=0.03)
    assert error[:, 5:].std().item() == pytest.approx(0.3, rel=0.03)
    sines = FrequencySineDataModule()
    for split, queries in (("train", 1.0), ("test", 0.0)):
        drawn = sines.draw(0, split, 10, 10, 0, 2000)
        error = (drawn.y[..., 0] - sines.curve(drawn.task, drawn.x[..., 0])) / (0.01 * (0.1 + 4.9 * drawn.task[:, :1]))
        assert error[:, :10].std().item() == pytest.approx(1, rel=0.05)
        assert error[:, 10:].std().item() == pytest.approx(queries, rel=0.05, abs=1e-6)


def test_fixed_training_tasks_come_again_with_their_points_and_noise() -> None:
    data = FrequencySineDataModule(training_tasks=7)
    drawn = data.draw(0, "train", 10, 10, 0, 200)
    assert len(torch.unique(drawn.task, dim=0)) == len(torch.unique(torch.cat([drawn.x, drawn.y], 1), dim=0)) == 7
    later = data.draw(0, "train", 10, 10, 150, 50)
    assert torch.equal(later.y, drawn.y[150:])
    assert len(torch.unique(data.draw(0, "test", 10, 10, 0, 200).task, dim=0)) == 200
    assert len(torch.unique(FrequencySineDataModule(training_tasks=None).draw(0, "train", 5, 5, 0, 200).task, dim=0)) == 200


@both
def test_a_task_is_the_same_for_every_number_of_points(kind: type[CurveDataModule]) -> None:
    data = kind()  # type: ignore[call-arg]
    assert torch.equal(data.draw(0, "test", 5, 5, 3, 4).task, data.draw(0, "test", 10, 100, 3, 4).task)


@both
def test_the_truth_is_the_curve_without_noise(kind: type[CurveDataModule]) -> None:
    data = kind()  # type: ignore[call-arg]
    evaluation = data.evaluation_sets("test")[0]
    support = data.episodes(evaluation, 4, 1).episodes.support
    error = data.truth(evaluation, 4, support.x[0, :, 0]) - support.y[0, :, 0]
    assert 0 < error.abs().max() < 1.5


def test_evaluation_sets() -> None:
    (one,) = SineLineDataModule().evaluation_sets("test")
    assert (one.name, one.shots, one.queries, one.episodes) == ("standard", 5, 100, 2000)
    names = [s.name for s in FrequencySineDataModule().evaluation_sets("test")]
    assert names == ["standard/5-shot", "standard/10-shot"]
    (val,) = SineLineDataModule(val_episodes=30).evaluation_sets("val")
    assert (val.name, val.shots, val.queries, val.episodes) == ("val", 5, 100, 30)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (SineLineDataModule, {"noise_std": -1.0}, r"noise_std is -1.0; it must be >= 0"),
        (FrequencySineDataModule, {"noise": -0.1}, r"noise is -0.1; it must be >= 0"),
        (
            FrequencySineDataModule,
            {"training_tasks": 0},
            r"training_tasks is 0; it must be >= 1, or null for an endless stream",
        ),
        (SineLineDataModule, {"test_shots": []}, r"test_shots is \[\]; it needs at least one number of shots >= 1"),
        (SineLineDataModule, {"shots": 0}, r"shots is 0; it must be >= 1"),
    ],
)
def test_wrong_arguments_are_refused(kind: type, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(**wrong)
