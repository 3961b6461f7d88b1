"""Whether a regression method knows its errors: calibration of its predictions, and which points it would ask for next.

Every method has a predictive distribution here: the mixture, over the models that it samples (`predictions`; one model where
it has none, as MAML), of Gaussians with the standard deviation of the noise.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples
from mamllit.core.noise import episode_key, uniform
from mamllit.core.tree import vmap
from mamllit.engine.cpu import fast_on_cpu
from mamllit.methods import Method
from mamllit.methods.base import State

Choice = Literal["spread", "random"]


class Calibration(NamedTuple):
    """Per episode, [T]: mean negative log-likelihood of the query targets, and the share of them in the central interval."""

    nll: Tensor
    coverage: Tensor


def samples(method: Method, state: State, x: Tensor) -> Tensor:
    """The outputs of all models of an adapted method, [P, n, d]; P is 1 where it predicts with one."""
    predictions = getattr(method, "predictions", None)
    return method.predict(state, x)[None] if predictions is None else predictions(state, x)


def predictive(method: Method, episodes: Episode, steps: int) -> Tensor:
    """What all models of the method predict for the query after `steps` inner steps, [T, P, n, d]; to `score`."""

    def one(episode: Episode) -> Tensor:
        return samples(method, method.adapt(episode.support, steps), episode.query.x)

    # the gradients of the inner loop are torch.func's, which works under no_grad too
    with torch.no_grad(), fast_on_cpu(episodes.support.x):
        return vmap(one, randomness="different")(episodes)


def score(outputs: Tensor, targets: Tensor, noise_std: float, level: float = 0.9) -> Calibration:
    """How well mixtures of Gaussians around `outputs` [T, P, n, d] predict `targets` [T, n, d].

    Args:
        noise_std: standard deviation of the Gaussian around each model's prediction, > 0.
        level: of the central interval, between 0 and 1; calibrated predictions cover that share of the targets.

    Raises:
        ValueError: for a number out of bounds.
    """
    if noise_std <= 0:
        raise ValueError(f"noise_std is {noise_std}; it must be > 0")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    z = (targets[:, None] - outputs) / noise_std
    log_p = -0.5 * z.square() - math.log(noise_std * math.sqrt(2 * math.pi))
    nll = math.log(outputs.shape[1]) - torch.logsumexp(log_p, 1)
    below = torch.special.ndtr(z).mean(1)  # the mixture's probability of a smaller value
    covered = ((below - 0.5).abs() <= level / 2).to(nll.dtype)
    return Calibration(nll.flatten(1).mean(1), covered.flatten(1).mean(1))


def calibration(method: Method, episodes: Episode, steps: int, noise_std: float, level: float = 0.9) -> Calibration:
    """The `score` of the predictive distributions after `steps` inner steps on a batch of regression episodes."""
    return score(predictive(method, episodes, steps), episodes.query.y, noise_std, level)


def active_learning(
    method: Method, start: Examples, pool: Examples, query: Examples, steps: int, labels: int, choice: Choice
) -> Tensor:
    """Ask for the labels of `labels` points of a pool, one after the other, adapting anew from the meta-parameters each time.

    Args:
        start: the labelled points to begin with, x and y [T, K, 1].
        pool, query: points to choose from, [T, P, 1], and points to judge by.
        choice: "spread" asks where the sampled models differ most, "random" anywhere.

    Returns the mean squared error on the query after 0, 1, ..., `labels` labels, [T, labels + 1].

    Raises:
        ValueError: for an unknown choice, or more labels than the pool has points.
    """
    if choice not in ("spread", "random"):
        raise ValueError(f"choice is {choice!r}; it must be 'spread' or 'random'")
    if not 0 <= labels <= pool.x.shape[1]:
        raise ValueError(f"labels is {labels}; the pool has {pool.x.shape[1]} points, so it must lie between 0 and that")

    def one(support: Examples, pool_x: Tensor, query: Examples) -> tuple[Tensor, Tensor]:
        state = method.adapt(support, steps)
        spread = samples(method, state, pool_x).var(0, correction=0)[:, 0]
        if choice == "random":
            spread = uniform(episode_key(support), 0, spread.shape, spread).to(spread.dtype)
        return method.objective.metric(method.predict(state, query.x), query.y), spread

    support, errors = start, []
    asked = torch.zeros(pool.x.shape[:2], dtype=torch.bool, device=pool.x.device)
    tasks = torch.arange(len(asked), device=asked.device)
    with torch.no_grad(), fast_on_cpu(start.x):
        for number in range(labels + 1):
            error, score = vmap(one, randomness="different")(support, pool.x, query)
            errors.append(error)
            if number < labels:
                picked = score.masked_fill(asked, -torch.inf).argmax(1)
                asked[tasks, picked] = True
                support = Examples(
                    torch.cat([support.x, pool.x[tasks, picked][:, None]], 1),
                    torch.cat([support.y, pool.y[tasks, picked][:, None]], 1),
                )
    return torch.stack(errors, 1)
