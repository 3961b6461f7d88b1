"""What every method must do, run on every method there is. A new method needs one entry in ENTRIES and nothing else."""

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mamllit.methods
from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.engine.plain import mean_meta_loss
from mamllit.engine.stages import MetaStep
from mamllit.methods import (
    ANIL,
    BMAML,
    CAVIA,
    IMAML,
    LLAMA,
    MAML,
    MANN,
    PLATIPUS,
    FineTuning,
    JointTraining,
    LinearProbe,
    LSTMLearner,
    MAMLPlusPlus,
    MatchingNetworks,
    MemoryModule,
    MetaLearnerLSTM,
    MetaSGD,
    Method,
    MTNet,
    MultiTask,
    NearestNeighbour,
    NeuralStatistician,
    PrototypicalNetworks,
    Reptile,
    SiameseNetworks,
)
from mamllit.objectives import Classification

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 3, 8

# One small float64 instance per method, for 3-way episodes of 1x8x8 images.
ENTRIES: dict[type[Method], Callable[[], Method]] = {
    ANIL: lambda: ANIL(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots"),
    CAVIA: lambda: CAVIA(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.5, 2, "mean", 3, "layers.0"),
    IMAML: lambda: IMAML(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "mean", 2.0),
    JointTraining: lambda: JointTraining(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "mean"),
    MAML: lambda: MAML(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots"),
    MAMLPlusPlus: lambda: MAMLPlusPlus(
        MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "mean", 10, True, True
    ),
    MetaSGD: lambda: MetaSGD(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), "mean", inner_steps=2),
    PLATIPUS: lambda: PLATIPUS(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots", 0.1),
    BMAML: lambda: BMAML(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots", particles=3),
    LLAMA: lambda: LLAMA(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots", 0.1, models=2),
    MTNet: lambda: MTNet(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "sum_over_shots"),
    MultiTask: lambda: MultiTask(
        MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, "mean", 0.01, 3, "l2_to_mean", 0.1
    ),
    FineTuning: lambda: FineTuning(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 0.1, 2, 0.5),
    LinearProbe: lambda: LinearProbe(MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), 0.1, 2, "cosine"),
    MatchingNetworks: lambda: MatchingNetworks(
        MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), "attention", 5.0, context_steps=2, features=5
    ),
    LSTMLearner: lambda: LSTMLearner(MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), 5, WAYS, 4),
    MANN: lambda: MANN(MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), 5, WAYS, 4, 6, 4, 2),
    MemoryModule: lambda: MemoryModule(MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), 5),
    MetaLearnerLSTM: lambda: MetaLearnerLSTM(MLP(SIDE * SIDE, [6, 5], WAYS, norm=True), Classification(), 2, 4),
    NearestNeighbour: lambda: NearestNeighbour(MLP(SIDE * SIDE, [6], 5, norm=True), Classification()),
    # no norm: the gradient of a bias before one is zero but for rounding, and divergences make that large
    NeuralStatistician: lambda: NeuralStatistician(
        MLP(SIDE * SIDE, [6], 5), MLP(7, [6], SIDE * SIDE), Classification(), 5, 3, 4, 6
    ),
    PrototypicalNetworks: lambda: PrototypicalNetworks(MLP(SIDE * SIDE, [6], 5, norm=True), Classification()),
    SiameseNetworks: lambda: SiameseNetworks(
        MLP(SIDE * SIDE, [6], 5, norm=True), Classification(), features=5, inner_steps=2, inner_lr=0.1
    ),
    # no norm: Adam divides the gradient of a bias before one, which is zero but for rounding, by itself
    Reptile: lambda: Reptile(MLP(SIDE * SIDE, [6, 5], WAYS), Classification(), 0.1, 2, 4, "adam"),
}


def concrete_methods() -> list[type[Method]]:
    """Every concrete subclass of `Method` that a module of mamllit.methods defines."""
    modules = [importlib.import_module(f"mamllit.methods.{m.name}") for m in pkgutil.iter_modules(mamllit.methods.__path__)]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda cls: cls.__name__)


@pytest.fixture(params=concrete_methods(), ids=lambda cls: cls.__name__)
def method(request: pytest.FixtureRequest) -> Method:
    if request.param not in ENTRIES:
        pytest.fail(f"{request.param.__name__} has no entry in ENTRIES of the conformance test; add one")
    return ENTRIES[request.param]().double()


@pytest.fixture
def episodes(image_episodes: Callable[..., Episode]) -> Episode:
    return image_episodes(5, ways=WAYS, shots=SHOTS, queries=QUERIES, side=SIDE)


def first(episodes: Episode) -> Episode:
    return Episode(*(Examples(part.x[0], part.y[0], part.ways) for part in episodes))


def test_the_methods_are_found() -> None:
    assert MAML in concrete_methods()
    assert set(ENTRIES) <= set(concrete_methods())


def test_vectorised_chunked_looped_and_plain_agree(method: Method, episodes: Episode) -> None:
    """Loss, logs and gradient; 2 leaves a chunk of one."""
    expected = MetaGradient(method, "vmap")(episodes)
    assert expected.gradient
    assert sum(value.norm() for value in expected.gradient.values()) > 0
    for execution in (2, "loop"):
        torch.testing.assert_close(
            MetaGradient(method, execution)(episodes)._asdict(), expected._asdict(), rtol=1e-9, atol=1e-9
        )
    loss, logs = mean_meta_loss(method, episodes)
    trained = [value for value in method.parameters() if value.requires_grad]
    gradient = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    plain = MetaStep(loss.detach(), logs, dict(zip(expected.gradient, gradient, strict=True)))
    torch.testing.assert_close(plain._asdict(), expected._asdict(), rtol=1e-9, atol=1e-9)


def test_nothing_is_kept_on_self_between_the_verbs(method: Method, episodes: Episode) -> None:
    """The whole object, with parameters, buffers and submodules, is the same byte for byte."""
    before = pickle.dumps(method)
    assert before == pickle.dumps(method)
    episode = first(episodes)
    method.predict(method.adapt(episode.support), episode.query.x)
    method.trajectory(episode.support, 2)
    method.meta_loss(episode)
    MetaGradient(method)(episodes)
    evaluate(method, episodes, 2)
    assert pickle.dumps(method) == before


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_adapt_is_the_end_of_the_trajectory(steps: int, method: Method, episodes: Episode) -> None:
    episode = first(episodes)
    trajectory = method.trajectory(episode.support, steps)
    assert len(trajectory) in (1, steps + 1)
    outputs = [method.predict(state, episode.query.x) for state in (trajectory[-1], method.adapt(episode.support, steps))]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


def test_meta_loss_and_logs_are_finite_scalars(method: Method, episodes: Episode) -> None:
    loss, logs = method.meta_loss(first(episodes))
    assert loss.shape == ()
    assert loss.requires_grad
    assert method.objective.metric_name in logs
    assert all(value.shape == () and not value.requires_grad for value in logs.values())
    assert all(value.isfinite() for value in (loss, *logs.values()))


def test_predict_gives_one_row_of_scores_per_input(method: Method, episodes: Episode) -> None:
    episode = first(episodes)
    output = method.predict(method.adapt(episode.support), episode.query.x)
    assert output.shape == (WAYS * QUERIES, WAYS)
    assert output.dtype == torch.float64


def test_evaluate_gives_a_value_per_episode_and_number_of_steps(method: Method, episodes: Episode) -> None:
    values = evaluate(method, episodes, 2)
    assert values.shape in ((5, 1), (5, 3))
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("frozen", ["before", "after"])
def test_a_frozen_layer_stays_in_the_inner_loop(
    frozen: str, method: Method, episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requires_grad_(False)` on the second layer, before the method is made or after; the network still learns the task."""

    plain = MLP

    def network(*args: Any, **settings: Any) -> MLP:
        net = plain(*args, **settings)
        net.layers[1].requires_grad_(False)
        return net

    if frozen == "before":
        monkeypatch.setitem(globals(), "MLP", network)
        method = ENTRIES[type(method)]().double()
    else:
        method.backbone.layers[1].requires_grad_(False)  # type: ignore[union-attr, operator, index]
    step = MetaGradient(method)(episodes)
    assert not any("backbone.layers.1." in name for name in step.gradient)
    torch.testing.assert_close(MetaGradient(method, "loop")(episodes)._asdict(), step._asdict(), rtol=1e-9, atol=1e-9)

    episode, own = first(episodes), dict(method.backbone.named_parameters())  # type: ignore[union-attr, operator]
    states = method.trajectory(episode.support, 2)
    if not isinstance(states[-1], dict):
        return  # no weights of the network are adapted
    begun, *_, adapted = states
    for name in ("layers.1.weight", "layers.1.bias"):
        for state in (begun, adapted):
            assert torch.equal(state.get(name, own[name]).broadcast_to(own[name].shape), own[name])
    assert any(not torch.equal(value, begun[name]) for name, value in adapted.items() if name != "done")
    if isinstance(method, MultiTask):
        trained = method.trained(episode.support)
        assert torch.equal(trained["layers.1.weight"], own["layers.1.weight"])
        assert not torch.equal(trained["layers.0.weight"], own["layers.0.weight"])


def test_a_wholly_frozen_model_still_adapts(method: Method, episodes: Episode) -> None:
    """`requires_grad_(False)` on everything is how a finished model is put to use: its inner loop stays as it was."""
    expected = evaluate(method, episodes, 2)
    torch.testing.assert_close(evaluate(method.requires_grad_(False), episodes, 2), expected, rtol=0, atol=0)
