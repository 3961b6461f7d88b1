"""What a prediction depends on: found by trying, and the same prediction for an example alone and in company."""

from collections.abc import Callable

import pytest
import torch
from network_rows import TASKS, WAYS, episodes, flat, method_of, no_stats
from torch import Tensor, nn

from mamllit.backbones import BatchStatNorm
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.company import company
from mamllit.engine.evaluation import BATCH_NORMS, predict, readings
from mamllit.inference.classifier import classify


class AcrossTheBatch(nn.Module):
    """Takes the mean of the batch away: no norm, and no statistics that could be those of the support."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("make", "kind", "operators"),
    [
        (nn.Identity, "none", "torch"),
        (lambda: nn.LayerNorm(8), "none", "torch"),
        (nn.Dropout, "none", "torch"),
        (lambda: BatchStatNorm(8), "norm", "torch"),
        (lambda: nn.BatchNorm1d(8, track_running_stats=False), "norm", "plain"),
        (AcrossTheBatch, "other", "torch"),
    ],
    ids=["none", "layer norm", "dropout", "BatchStatNorm", "BatchNorm1d", "mean of the batch"],
)
@pytest.mark.parametrize("vectorised", [True, False])
def test_what_a_prediction_depends_on_is_found_by_trying(
    make: Callable[[], nn.Module], kind: str, operators: str, vectorised: bool
) -> None:
    """And the inductive reading is the same alone and in company; a head of zeros does not hide anything."""
    row = flat(make)
    method, batch = method_of(row).eval(), episodes(row)
    nn.init.zeros_(method.backbone[-1].weight)  # type: ignore[index, arg-type]
    episode = item(batch, 0)
    assert company(method) is None
    found = company(method, episode)
    assert found is not None
    assert (found.kind, found.operators) == (kind, operators)
    both = readings(method, batch, 1, BATCH_NORMS, "auto" if vectorised else "loop")
    assert both["inductive"].shape == both["transductive"].shape == (TASKS, 2)

    state = method.adapt(episode.support)
    alone = Episode(episode.support, Examples(episode.query.x[:1], episode.query.y[:1], WAYS))
    others = Episode(
        episode.support, Examples(torch.cat([episode.query.x[:1], episode.query.x[1:].neg()]), episode.query.y, WAYS)
    )
    expected = predict(method, state, episode, "inductive")[:1]
    for other in (alone, others):
        torch.testing.assert_close(predict(method, state, other, "inductive")[:1], expected, rtol=1e-9, atol=1e-9)
    changed = predict(method, state, others)[:1] - predict(method, state, episode)[:1]
    assert bool(changed.abs().max() > 1e-4) == (kind != "none")


@pytest.mark.parametrize("make", [no_stats(nn.BatchNorm1d, 8), AcrossTheBatch], ids=["BatchNorm1d", "mean of the batch"])
def test_adapt_gives_an_image_the_same_probabilities_alone_and_in_company(make: Callable[[], nn.Module]) -> None:
    row = flat(make)
    method, batch = method_of(row).eval(), episodes(row)
    support, query = item(batch, 0).support, batch.query.x[0]
    together = classify(method, support, query, 2, "inductive")
    one = torch.cat([classify(method, support, x[None], 2, "inductive") for x in query])
    torch.testing.assert_close(one, together, rtol=1e-9, atol=1e-9)
    assert (classify(method, support, query, 2, "transductive") - together).abs().max() > 1e-3
