"""Figures of how the model adapts, as PNG files in the run directory and as images in the loggers."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.core.tree import item, tree_map
from mamllit.data import EpisodicDataModule, EvaluationSet, ImageDataModule
from mamllit.engine.evaluation import ordinary
from mamllit.engine.meta_gradient import in_precision_of
from mamllit.figures.plotting import classification_adaptation, learning_curve, regression_adaptation, stream_answers
from mamllit.figures.sample_plots import conditioned_samples, mask_probabilities, step_sizes
from mamllit.methods import Method
from mamllit.methods.parts.streams import StreamMethod
from mamllit.runs.logs import unharmed
from mamllit.systems.episodic import EpisodicSystem

# What a method may report of itself, layer by layer: the method's name -> the figure's name and how it is drawn.
LEARNED = {"mask_probabilities": ("mask_probabilities", mask_probabilities), "learned_rates": ("step_sizes", step_sizes)}


class AdaptationFigures(L.Callback):
    """At the end of a test: the adaptation of a few episodes (the MAML paper's figure 2), the metric over the steps, and what
    else the method has learned, if it says so (an MT-net's mask probabilities, Meta-SGD's step sizes).

    Args:
        steps: numbers of inner steps to draw.
        episodes: regression tasks to draw side by side.
    """

    def __init__(self, steps: tuple[int, ...] = (0, 1, 10), episodes: int = 3) -> None:
        self.steps, self.episodes = tuple(steps), episodes

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not (trainer.is_global_zero and isinstance(pl_module, EpisodicSystem) and isinstance(data, EpisodicDataModule)):
            return
        name = type(pl_module.method).__name__
        for key, figure in self.draw(pl_module, data, f"{name}, {pl_module.trained_steps} iterations").items():
            path = Path(trainer.default_root_dir) / "figures" / f"{key}.png"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=130)
            except OSError as error:
                rank_zero_warn(f"cannot write the figure {path} ({error.strerror or error}); `mamllit test` makes it again")
                continue
            print(f"figure: {path}")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    with unharmed(logger):
                        logger.log_image(f"figures/{key}", [str(path)])

    def draw(self, learner: EpisodicSystem, data: EpisodicDataModule, title: str) -> dict[str, Figure]:
        """The figures by name."""
        metric, regression = learner.method.objective.metric_name, not learner.method.objective.higher_is_better
        measured = [reading for reading in learner.readings if reading.name in learner.summaries]
        curves = {reading.name: learner.summaries[reading.name] for reading in measured}
        firsts = {reading.name: learner.begins_at(reading.evaluation) for reading in measured}
        heading = f"{title}, meta-test"
        figures = {"learning_curve": learning_curve(curves, metric, heading, regression, learner.method.counted, firsts)}
        asked = [s for s in self.steps if s <= learner.eval_steps] or [0, learner.eval_steps]
        steps = sorted({*asked, learner.report_step})  # with the headline, whatever else is drawn
        for shots, evaluation in {reading.evaluation.shots: reading.evaluation for reading in measured}.items():
            if isinstance(learner.method, StreamMethod) and evaluation.stream:
                figures["stream"] = _stream(learner.method, data, evaluation, title)
                continue
            heading = f"{title}, K = {shots}"
            if not learner.holds_examples:
                figures |= learner.own_figures(evaluation, heading)
                continue
            figures[f"adaptation_{shots}shot"] = (
                _regression(learner.method, data, evaluation, steps, self.episodes, heading)
                if regression
                else _classification(learner, data, evaluation, steps, heading)
            )
        if (imagined := getattr(learner.method, "imagined", None)) and isinstance(data, ImageDataModule):
            figures["samples"] = _imagined(imagined, learner, data, title)
        for verb, (name, draw) in LEARNED.items():
            if tell := getattr(learner.method, verb, None):
                figures[name] = draw({layer: value.cpu() for layer, value in tell().items()}, title)
        return figures


def outputs_after(method: Method, episode: Episode, x: Tensor, steps: list[int]) -> dict[int, Tensor]:
    """What the method predicts for `x` after each number of inner steps, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():  # `torch.func.grad` works under it
        support = in_precision_of(method, ordinary(episode)).support
        x = x.to(support.x.dtype) if x.is_floating_point() else x
        states = method.trajectory(support, max(steps))
        outputs = {s: method.predict(states[min(s, len(states) - 1)], x).cpu() for s in steps}
    return {s: output.to(torch.promote_types(output.dtype, torch.float32)) for s, output in outputs.items()}  # to be drawn


def _regression(
    method: Method, data: EpisodicDataModule, evaluation: EvaluationSet, steps: list[int], tasks: int, title: str
) -> Figure:
    device = next(method.parameters(), torch.empty(0)).device
    x = torch.linspace(-5, 5, 200, device=device)
    batch = data.episodes(evaluation, 0, tasks).episodes
    curves: dict[int, list[Tensor]] = {s: [] for s in steps}
    truth = []
    for task in range(tasks):
        episode = tree_map(lambda tensor: tensor.to(device), item(batch, task))
        for s, output in outputs_after(method, episode, data.inputs(evaluation, task, x), steps).items():
            curves[s].append(output[:, 0])
        truth.append(data.truth(evaluation, task, x.cpu()))  # type: ignore[attr-defined]
    predictions = {s: torch.stack(values) for s, values in curves.items()}
    support = batch.support
    return regression_adaptation(x.cpu(), torch.stack(truth), support.x[..., 0], support.y[..., 0], predictions, title)


def _imagined(imagined: Callable[..., Tensor], learner: EpisodicSystem, data: ImageDataModule, title: str) -> Figure:
    """What a model of sets samples given the query images of each class of an episode."""
    query = data.episodes(learner.evaluation_sets[-1], 0, 1).episodes.query
    sets = query.x[0].unflatten(0, (query.ways, -1))[:, :5]
    with torch.no_grad():
        samples = imagined(sets.to(learner.device), 5).cpu()
    return conditioned_samples(sets.cpu(), samples, title, ink_is_1(data))


def _stream(method: StreamMethod, data: EpisodicDataModule, evaluation: EvaluationSet, title: str) -> Figure:
    device = next(method.parameters(), torch.empty(0)).device
    stream = tree_map(lambda tensor: tensor.to(device), item(data.episodes(evaluation, 0, 1).episodes, 0)).query
    with torch.no_grad():
        answers = method.answers(stream).argmax(-1)
    return stream_answers(stream.x.cpu(), stream.y.cpu(), answers.cpu(), title, ink_is_1(data))


def ink_is_1(data: EpisodicDataModule) -> bool:
    """Whether 1 stands for ink in these episodes: then it is drawn dark, as on the paper."""
    return isinstance(data, ImageDataModule) and data.preparation.invert


def _classification(
    learner: EpisodicSystem, data: EpisodicDataModule, evaluation: EvaluationSet, steps: list[int], title: str
) -> Figure:
    method = learner.method
    device = next(method.parameters(), torch.empty(0)).device
    batch = data.episodes(evaluation, 0, 1).episodes
    episode = tree_map(lambda tensor: tensor.to(device), item(batch, 0))
    logits = outputs_after(method, episode, episode.query.x, list(range(max(steps) + 1)))
    shown = slice(0, None, max(evaluation.queries, 1))  # one query image of each class
    return classification_adaptation(
        episode.support.x[:: evaluation.shots].cpu(),
        episode.query.x[shown].cpu(),
        episode.query.y[shown].cpu(),
        {s: value.softmax(-1)[shown] for s, value in logits.items()},
        title,
        ink_is_1(data),
        learner.report_step,
    )
