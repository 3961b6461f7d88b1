"""Evaluation against a loop, and the two readings of batch norm: what a prediction may depend on under each."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.company import company
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm, evaluate, predict, readings
from mamllit.methods import MAML
from mamllit.methods.base import Predictor
from mamllit.objectives import Classification, Regression

MakeEpisodes = Callable[..., Episode]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def one(episodes: Episode, i: int) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def classifier(backbone: nn.Module) -> MAML:
    return MAML(backbone.double(), Classification(), 0.5, 1, "sum_over_shots")


def conv() -> MAML:
    return classifier(Conv4(1, 4, 3, 8, "stride", norm_scale=True))


def mlp(norm: bool = True) -> MAML:
    return classifier(MLP(64, [6, 5], 3, norm=norm))


def query(episode: Episode, x: Tensor) -> Episode:
    return Episode(episode.support, Examples(x, episode.query.y[: len(x)], episode.ways))


# ---- the metric after each number of steps ---------------------------------------------------------------------------


def test_evaluate_equals_a_loop_over_the_episodes(image_episodes: MakeEpisodes) -> None:
    method, episodes = mlp(), image_episodes(6, queries=5)
    values = evaluate(method, episodes, 3)
    assert values.shape == (6, 4)
    for i in range(6):
        episode = one(episodes, i)
        for steps in range(4):
            output = method.predict(method.adapt(episode.support, steps), episode.query.x)
            assert values[i, steps] == (output.argmax(-1) == episode.query.y).double().mean()
    assert len(values.unique()) > 3


def test_evaluate_without_grad_mode_still_adapts(sine_episodes: MakeEpisodes) -> None:
    """torch.func.grad differentiates under no_grad and inference_mode alike."""
    torch.manual_seed(0)
    method = MAML(MLP(1, [8], 1).double(), Regression(), 0.01, 1, "sum_over_shots")
    episodes = sine_episodes(4)
    expected = evaluate(method, episodes, 2).detach()
    assert (expected[:, 0] != expected[:, 2]).all()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(evaluate(method, episodes, 2), expected)


@pytest.mark.parametrize("make", [conv, mlp])
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_the_vectorised_readings_equal_single_predictions(
    make: Callable[[], MAML], batch_norm: BatchNorm, image_episodes: MakeEpisodes
) -> None:
    method, episodes = make(), image_episodes(5, queries=4)
    values = readings(method, episodes, 2, BATCH_NORMS)[batch_norm]
    for i in range(5):
        episode = one(episodes, i)
        for steps in range(3):
            output = predict(method, method.adapt(episode.support, steps), episode, batch_norm)
            assert values[i, steps] == method.objective.metric(output, episode.query.y)


def test_chunks_of_episodes_give_the_same_readings(image_episodes: MakeEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two of six: the 9 + 12 images of an episode have 64 numbers each."""
    method, episodes = conv(), image_episodes(6, shots=3, queries=4)
    whole = readings(method, episodes, 2, BATCH_NORMS)
    monkeypatch.setattr("mamllit.engine.evaluation.CHUNK", 2 * 21 * 64)
    calls: list[int] = []
    original = MAML.trajectory
    monkeypatch.setattr(MAML, "trajectory", lambda self, *args: calls.append(1) or original(self, *args))
    parts = readings(method, episodes, 2, BATCH_NORMS)
    assert len(calls) == 3
    for batch_norm in BATCH_NORMS:
        assert torch.equal(parts[batch_norm], whole[batch_norm])


def test_the_two_readings_are_of_one_adaptation(image_episodes: MakeEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = MAML.trajectory
    monkeypatch.setattr(MAML, "trajectory", lambda self, *args: calls.append(1) or original(self, *args))
    method, episodes = conv(), image_episodes(8, queries=6)
    company(method, one(episodes, 0))  # found by adapting a copy, once
    calls.clear()
    both = readings(method, episodes, 2, BATCH_NORMS)
    assert len(calls) == 1  # vectorised over the episodes
    assert list(both) == ["transductive", "inductive"]
    assert (both["transductive"] != both["inductive"]).any()
    for inductive, name in enumerate(BATCH_NORMS):
        assert torch.equal(both[name], evaluate(method, episodes, 2, inductive=bool(inductive)))


# ---- what a prediction depends on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [conv, mlp])
def test_an_inductive_prediction_does_not_depend_on_the_other_queries_and_a_transductive_one_does(
    make: Callable[[], MAML], image_episodes: MakeEpisodes
) -> None:
    method, episode = make(), one(image_episodes(1, queries=3), 0)
    state = method.adapt(episode.support, 3)
    alone = query(episode, episode.query.x[:1])
    others = query(episode, torch.cat([episode.query.x[:1], 5 * torch.rand_like(episode.query.x[1:])]))
    together = predict(method, state, episode, "inductive")
    assert together.shape == (9, 3)
    for changed in (alone, others):
        torch.testing.assert_close(predict(method, state, changed, "inductive")[0], together[0], **EXACT)
    transductive = predict(method, state, episode, "transductive")[0]
    assert (predict(method, state, others, "transductive")[0] - transductive).abs().max() > 1e-3


@pytest.mark.parametrize("make", [conv, mlp])
def test_where_the_query_is_the_support_both_agree(make: Callable[[], MAML], image_episodes: MakeEpisodes) -> None:
    """So the statistics are the support's under the adapted weights, and not under those before."""
    method, episode = make(), one(image_episodes(1), 0)
    episode = Episode(episode.support, episode.support)
    for steps in (0, 1, 4):
        state = method.adapt(episode.support, steps)
        outputs = [predict(method, state, episode, batch_norm) for batch_norm in BATCH_NORMS]
        torch.testing.assert_close(outputs[0], outputs[1], **EXACT)
    assert not torch.equal(outputs[0], predict(method, method.adapt(episode.support, 0), episode))


def test_without_batch_norm_both_readings_are_the_same(image_episodes: MakeEpisodes) -> None:
    method, episode = mlp(norm=False), one(image_episodes(1), 0)
    state = method.adapt(episode.support, 2)
    outputs = [predict(method, state, episode, batch_norm) for batch_norm in BATCH_NORMS]
    torch.testing.assert_close(outputs[0], outputs[1], **EXACT)


def test_a_method_says_itself_what_an_evaluation_reports(sine_episodes: MakeEpisodes) -> None:
    """By presentation, here: the error on each query point in turn, whatever the number of inner steps."""

    class ByPresentation(MAML):
        def curve(self, episode: Episode, steps: int, *predictors: Predictor) -> tuple[torch.Tensor, ...]:
            errors = (self.predict(self.adapt(episode.support), episode.query.x) - episode.query.y).square()[:, 0]
            return (errors,) * len(predictors)

    torch.manual_seed(0)
    episodes = sine_episodes(3, shots=5, queries=4)
    plain, other = (kind(MLP(1, [8], 1).double(), Regression(), 0.01, 1, "mean") for kind in (MAML, ByPresentation))
    other.load_state_dict(plain.state_dict())
    values = evaluate(other, episodes, 7)
    assert values.shape == (3, 4)
    torch.testing.assert_close(values.mean(1), evaluate(plain, episodes, 1)[:, 1])
    (alone,) = plain.curve(item(episodes, 2), 1)
    torch.testing.assert_close(alone, evaluate(plain, episodes, 1)[2])
