"""learn2learn's algorithms as a method: the meta-gradient and the adapted predictions are those of learn2learn's own loop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.engine.evaluation import readings
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.objectives import Classification, Regression

l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (tests/requirements-oracle.txt)")
bridge = pytest.importorskip("mamllit.bridges.learn2learn")

ALPHA, WAYS, SHOTS = 0.1, 3, 2
BUILDERS = {
    "MAML": lambda net: bridge.maml(net, ALPHA),
    "MAML, first order": lambda net: bridge.maml(net, ALPHA, first_order=True),
    "MetaSGD": lambda net: bridge.meta_sgd(net, ALPHA),
    "MetaCurvature": lambda net: bridge.meta_curvature(net, ALPHA),
    "MetaCurvature, adapted": lambda net: bridge.meta_curvature(net, ALPHA, adapt_transform=True),
    "Kronecker": lambda net: bridge.kronecker(net, ALPHA),
}
each_algorithm = pytest.mark.parametrize("name", BUILDERS)


def network(batch_norm: bool = True) -> nn.Module:
    norm = [nn.BatchNorm2d(4)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, WAYS)).double()


def algorithm(name: str) -> nn.Module:
    made = BUILDERS[name](network()).double()
    for parameter in made.parameters():  # away from where transforms are the identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def one(episodes: Episode, i: int) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def learn2learn_loop(made: nn.Module, episodes: Episode, steps: int) -> tuple[float, dict[str, Tensor]]:
    """Mean query loss and its gradient, as in learn2learn's examples, by nothing of mamllit."""
    made.zero_grad()
    total, tasks = 0.0, len(episodes.support.x)
    for i in range(tasks):
        support, query = one(episodes, i)
        learner = made.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(support.x), support.y))
        loss = F.cross_entropy(learner(query.x), query.y) / tasks
        loss.backward()
        total += loss.item()
    zero = torch.zeros((), dtype=torch.float64)
    return total, {name: zero if value.grad is None else value.grad.clone() for name, value in made.named_parameters()}


@each_algorithm
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_is_learn2learn_s(name: str, steps: int, image_episodes: Callable[..., Episode]) -> None:
    made, episodes = algorithm(name), image_episodes(3, ways=WAYS, shots=SHOTS, side=8)
    loss, gradient = learn2learn_loop(made, episodes, steps)  # batch norm is still PyTorch's
    found = MetaGradient(bridge.Learn2Learn(made, Classification(), steps))(episodes)
    assert found.loss.item() == pytest.approx(loss, rel=1e-10)
    assert set(found.gradient) == {f"method.algorithm.{key}" for key in gradient}
    learned = [key for key in gradient if not key.startswith("module.") and steps]  # step sizes and transforms
    assert not learned or max(found.gradient[f"method.algorithm.{key}"].abs().max() for key in learned) > 0
    for key, value in gradient.items():
        ours = found.gradient[f"method.algorithm.{key}"]
        torch.testing.assert_close(ours, value.expand_as(ours), rtol=1e-8, atol=1e-10)


@each_algorithm
def test_every_state_of_the_trajectory_predicts_as_learn2learn_s_learner(
    name: str, image_episodes: Callable[..., Episode]
) -> None:
    made = algorithm(name)
    method = bridge.Learn2Learn(made, Classification(), 2)
    support, query = one(image_episodes(1, ways=WAYS), 0)
    states = method.trajectory(support, 3)
    assert len(states) == 4
    for steps, state in enumerate(states):
        learner = made.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(support.x), support.y))
        torch.testing.assert_close(method.predict(state, query.x), learner(query.x), rtol=1e-10, atol=1e-10)


@each_algorithm
def test_evaluation_needs_no_gradients_outside_and_leaves_the_method_alone(
    name: str, image_episodes: Callable[..., Episode]
) -> None:
    method = bridge.Learn2Learn(algorithm(name), Classification(), 1)
    episodes = image_episodes(3, ways=WAYS)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.inference_mode():
        values = readings(method, episodes, 2, ("transductive", "inductive"))
    assert {key: value.shape for key, value in values.items()} == {"transductive": (3, 3), "inductive": (3, 3)}
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key])
    output = method.predict(method.adapt(one(episodes, 1).support, 2), one(episodes, 1).query.x)
    assert values["transductive"][1, 2] == Classification().metric(output, one(episodes, 1).query.y)
    assert not any(value.requires_grad for value in values.values())


def test_an_algorithm_of_one_s_own_will_do(sine_episodes: Callable[..., Episode]) -> None:
    """clone() and adapt() are all that is asked. One parameter by hand: see tests/methods/test_maml.py, one step, exact."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def clone(self) -> "Line":
            other = Line()
            other._parameters["w"] = self.w.clone()
            return other

        def adapt(self, loss: Tensor) -> None:
            (gradient,) = torch.autograd.grad(loss, [self.w], create_graph=True)
            self._parameters["w"] = self.w - 0.1 * gradient

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    support, query = (Examples(*(torch.full((1, 1, 1), value, dtype=torch.float64),) * 2) for value in (1.0, 2.0))
    step = MetaGradient(bridge.Learn2Learn(Line(), Regression(), 1))(Episode(support, query))
    assert step.loss.item() == pytest.approx(2.56, rel=1e-12)
    assert step.gradient["method.algorithm.w"].item() == pytest.approx(-5.12, rel=1e-12)


@pytest.mark.parametrize("name", ["MAML", "MetaCurvature", "Kronecker"])  # learn2learn's own MetaSGD cannot take two steps
def test_a_network_with_one_module_in_two_places_is_left_alone(name: str) -> None:
    """learn2learn's OmniglotCNN: `base` is also in `features`."""
    made = BUILDERS[name](l2l.vision.models.OmniglotCNN(WAYS, 4))
    method = bridge.Learn2Learn(made, Classification(), 1)
    support, query = (Examples(torch.rand(WAYS, 1, 28, 28), torch.arange(WAYS), WAYS) for _ in range(2))
    before = {key: (value, value.detach().clone()) for key, value in made.named_parameters()}
    with torch.no_grad():
        states = method.trajectory(support, 2)
        outputs = [method.predict(state, query.x) for state in states]
    learner = made.clone()
    for output in outputs:
        torch.testing.assert_close(learner(query.x), output)
        learner.adapt(F.cross_entropy(learner(support.x), support.y))
    for key, value in made.named_parameters():
        assert value is before[key][0]
        assert torch.equal(value, before[key][1])


# ---- batch norm ----------------------------------------------------------------------------------------------------


def test_running_statistics_are_left_out_and_the_parameters_keep_their_names() -> None:
    net = network()
    before = dict(net.named_parameters())
    method = bridge.Learn2Learn(bridge.maml(net, ALPHA), Classification(), 1)
    assert not list(method.named_buffers())
    assert all(value is before[name] for name, value in method.backbone.named_parameters())
    assert method.transductive
    assert not bridge.Learn2Learn(bridge.maml(network(False), ALPHA), Classification(), 1).transductive


def test_inductive_predictions_do_not_depend_on_each_other(image_episodes: Callable[..., Episode]) -> None:
    from mamllit.engine.evaluation import predict

    method = bridge.Learn2Learn(bridge.maml(network(), ALPHA), Classification(), 1)
    support, query = one(image_episodes(1, ways=WAYS), 0)
    state = method.adapt(support)
    alone = Episode(support, Examples(query.x[:1], query.y[:1], query.ways))
    whole = Episode(support, query)
    torch.testing.assert_close(predict(method, state, alone, "inductive"), predict(method, state, whole, "inductive")[:1])
    difference = predict(method, state, alone, "transductive") - predict(method, state, whole, "transductive")[:1]
    assert difference.abs().max() > 1e-3


# ---- in the LightningModule ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["MetaSGD", "MetaCurvature"])
def test_it_trains_in_the_same_lightning_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_episodes: Callable[..., Episode]
) -> None:
    import lightning as L
    from toy_images import ToyImages

    from mamllit.callbacks import AdaptationFigures, ResultWriter
    from mamllit.systems import MetaLearner

    torch.manual_seed(0)
    made = BUILDERS[name](MLP(64, [16], WAYS))
    learner = MetaLearner(bridge.Learn2Learn(made, Classification(), 1), eval_steps=2, log_every=1)
    start = {key: value.clone() for key, value in made.named_parameters()}
    trainer = L.Trainer(
        max_steps=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[ResultWriter(), AdaptationFigures()],
    )  # fmt: skip
    trainer.fit(learner, ToyImages(meta_batch_size=2))
    trainer.test(learner, ToyImages(), verbose=False)  # Lightning's default, inference mode
    assert all(not torch.equal(value, start[key]) for key, value in made.named_parameters())
    (summary,) = [value for key, value in learner.summaries.items() if key == "standard[5]"]
    assert summary.mean[1] > summary.mean[0]
    assert (tmp_path / "figures/adaptation_1shot.png").exists()


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_a_plain_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"is a Sequential, which has no clone and no adapt; wrap the network first"):
        bridge.Learn2Learn(network(), Classification(), 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"reduction": "sum"}, r"reduction is 'sum'; it must be 'sum_over_shots' or 'mean'"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"algorithm": bridge.maml(network(), ALPHA), "objective": Classification(), "inner_steps": 1}
    with pytest.raises(ValueError, match=message):
        bridge.Learn2Learn(**{**right, **wrong})


def test_a_negative_number_of_steps_is_refused(image_episodes: Callable[..., Episode]) -> None:
    method = bridge.Learn2Learn(bridge.maml(network(), ALPHA), Classification(), 1)
    with pytest.raises(ValueError, match=r"steps is -1; it must be >= 0"):
        method.trajectory(one(image_episodes(1), 0).support, -1)


@pytest.mark.parametrize(("execution", "compiled"), [("vmap", False), (2, False), ("auto", True)])
def test_what_cannot_be_vectorised_says_so(execution: str | int, compiled: bool) -> None:
    method = bridge.Learn2Learn(bridge.maml(network(), ALPHA), Classification(), 1)
    message = rf"^Learn2Learn cannot be vectorised or compiled, but execution is {execution!r} and compile is {compiled}; use"
    with pytest.raises(ValueError, match=message):
        MetaGradient(method, execution, compiled)  # type: ignore[arg-type]
