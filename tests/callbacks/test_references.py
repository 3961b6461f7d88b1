"""Guessing and the nearest class mean of plain features, on episodes made by hand."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from toy_images import ToyImages

from mamllit.backbones import MLP
from mamllit.callbacks import ResultWriter
from mamllit.callbacks.references import References
from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.metrics import Summary
from mamllit.data import EvaluationSet
from mamllit.methods import MAML
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner
from mamllit.systems.reading import readings_of


def batch(first: int = 0, tasks: int = 2, side: int = 8) -> EpisodeBatch:
    """Two classes, black and white; in every second task one of four query images lies on the wrong side."""
    support = torch.tensor([0.0, 0.2, 0.9, 1.0])
    queries = [torch.tensor([0.1, 0.3, 0.8, level]) for level in (0.7, 0.2)]

    def images(levels: torch.Tensor) -> torch.Tensor:
        return levels[:, None, None, None].expand(-1, 1, side, side)

    y = torch.tensor([0, 0, 1, 1]).expand(tasks, -1)
    x = torch.stack([images(support)] * tasks)
    query = torch.stack([images(queries[task % 2]) for task in range(tasks)])
    return EpisodeBatch(torch.arange(first, first + tasks), Episode(Examples(x, y, 2), Examples(query, y, 2)))


def test_the_nearest_mean_of_pixels_is_measured_by_episode() -> None:
    """Accuracy 1 and 3/4: mean 7/8, interval 1.96 * 0.17678 / sqrt(2) = 0.245."""
    references = References()
    assert references.of("standard") == {}
    references.update("standard", batch())
    found = references.of("standard")
    assert found["chance"] == (0.5, 0.0)
    assert found["nearest mean, pixels"] == pytest.approx((0.875, 0.245), abs=1e-4)
    assert found["nearest mean, HOG"][0] == pytest.approx(0.5)  # a flat image has no gradient, and the first class is taken
    assert references.as_dict() == {"standard": {name: list(values) for name, values in found.items()}}
    for first in range(2, 300, 50):
        references.update("standard", batch(first, 50))
    assert sum(map(len, references._metrics["standard"]["pixels"].index)) == 102
    references.update("small", batch(side=4))
    assert set(references.of("small")) == {"chance", "nearest mean, pixels"}


@pytest.mark.parametrize("own", [True, False])
def test_the_table_of_own_images_has_them_as_rows(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, learner = ToyImages(), MetaLearner(MAML(MLP(64, [4], 2), Classification(), 0.01, 1, "sum_over_shots"), eval_steps=1)
    monkeypatch.setattr(type(learner), "data", data)
    monkeypatch.setattr(ToyImages, "references", own)
    learner.evaluation_sets = [EvaluationSet("standard", "standard", "test", 2, 2, 2)]
    learner.readings = readings_of(learner.evaluation_sets, ("inductive",))
    values = torch.tensor([0.5, 0.9], dtype=torch.float64)
    learner.summaries = {learner.readings[0].name: Summary(values, values / 10, values, values * 0, 2)}
    writer = ResultWriter()
    writer.on_test_start(SimpleNamespace(), learner)
    writer.on_test_batch_end(SimpleNamespace(), learner, None, batch(), 0, 0)
    console = Console(width=150, file=io.StringIO())
    console.print(writer.table(learner))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("chance" in printed, "nearest mean, pixels" in printed, "0.875 ± 0.24" in printed) == (own, own, own)
