"""A few test episodes as rows of a table: the images, and the predictions before and after adapting."""

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from mamllit.callbacks.figures import ink_is_1, outputs_after
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item, tree_map
from mamllit.data import EpisodicDataModule, EvaluationSet
from mamllit.figures.plotting import regression_adaptation
from mamllit.systems.episodic import EpisodicSystem

Rows = tuple[list[str], list[list[Any]]]
QUERIES = 3  # of each class, at most


def episode_rows(learner: EpisodicSystem, data: EpisodicDataModule, evaluation: EvaluationSet, episodes: int) -> Rows:
    """Columns and rows for the first `episodes` of an evaluation set; pictures are arrays of bytes [H, W] or [H, W, 3].

    Classification of images: a row per query image, with the support (a column per class), the class, and what was predicted
    before and after adapting. Anything else: a row per episode, with its metric before and after, and for functions of one
    variable a picture.
    """
    device, steps = learner.device, [0, learner.report_step]
    rows: list[list[Any]] = []
    batch = data.episodes(evaluation, 0, min(episodes, evaluation.episodes))
    images = learner.method.objective.metric_name == "accuracy" and batch.episodes.query.x.dim() == 5
    for i, number in enumerate(batch.number.tolist()):
        episode = tree_map(lambda tensor: tensor.to(device), item(batch.episodes, i))
        outputs = outputs_after(learner.method, episode, episode.query.x, steps)
        own = tree_map(Tensor.cpu, episode)
        if images:
            rows += _image_rows(number, own, outputs[steps[0]], outputs[steps[1]], ink_is_1(data))
        else:
            rows.append(_one_row(learner, number, own, outputs[steps[0]], outputs[steps[1]]))
    after = f"after {steps[1]} step{'s' * (steps[1] != 1)}"
    common = ["episode", "support", "query"]
    if images:
        return [*common, "class", "before adapting", after, "probability of the class"], rows
    metric = learner.method.objective.metric_name
    return [*common, f"{metric} before adapting", f"{metric} {after}", "picture"], rows


def _image_rows(number: int, episode: Episode, before: Tensor, after: Tensor, dark_on_light: bool) -> list[list[Any]]:
    ways = int(episode.support.y.max()) + 1
    support = tiles(episode.support.x.unflatten(0, (ways, -1)), dark_on_light=dark_on_light)
    per_class = len(episode.query.y) // ways
    shown = [i for i in range(len(episode.query.y)) if i % per_class < QUERIES]
    chance = after.softmax(-1)
    rows = []
    for i in shown:
        query, label = tiles(episode.query.x[i][None, None], dark_on_light=dark_on_light), int(episode.query.y[i])
        predicted = [int(output[i].argmax()) for output in (before, after)]
        rows.append([number, support, query, label, *predicted, round(float(chance[i, label]), 4)])
    return rows


def _one_row(learner: EpisodicSystem, number: int, episode: Episode, before: Tensor, after: Tensor) -> list[Any]:
    metric = learner.method.objective.metric
    values = [float(metric(output, episode.query.y)) for output in (before, after)]
    picture = None
    if episode.query.x.shape[1:] == (1,):
        order = episode.query.x[:, 0].argsort()
        curves = {step: output[order, 0][None] for step, output in ((0, before), (learner.report_step, after))}
        figure = regression_adaptation(
            episode.query.x[order, 0], episode.query.y[order, 0][None], episode.support.x[None, :, 0],
            episode.support.y[None, :, 0], curves, f"test episode {number}",
        )  # fmt: skip
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return [number, *map(_points, episode), *values, picture]


def _points(examples: Examples) -> str:
    rows = torch.cat([examples.x.flatten(1), examples.y.flatten(1)], 1).tolist()
    return "; ".join(", ".join(f"{value:.3f}" for value in row) for row in rows)


def tiles(images: Tensor, gap: int = 2, dark_on_light: bool = False) -> np.ndarray:
    """Images [columns, rows, C, H, W] in 0 to 1 as one picture of bytes, [H', W'] for one channel, else [H', W', 3].

    Args:
        gap: white pixels between two images.
        dark_on_light: 1 is drawn black, as ink.
    """
    images = 1 - images if dark_on_light else images
    columns, rows, channels, height, width = images.shape
    picture = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for column in range(columns):
        for row in range(rows):
            y, x = row * (height + gap), column * (width + gap)
            picture[:, y : y + height, x : x + width] = images[column, row].clamp(0, 1)
    pixels = (picture * 255).round().to(torch.uint8).numpy()
    return pixels.transpose(1, 2, 0) if channels == 3 else pixels[0]
