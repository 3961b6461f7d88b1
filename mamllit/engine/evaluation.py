"""How well a method does on the query sets of a batch of episodes, after each number of inner steps.

Batch norm on batch statistics (anybody's: what a prediction depends on is found by trying, `mamllit.engine.company`)
makes two honest readings of one adapted model. "transductive" (the MAML paper's): the query
batch is normalised by itself, so a prediction depends on the other query images. "inductive": by the statistics of the
support under the adapted weights, so each query image is predicted by itself.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mamllit.backbones.first_rows import normalised_by_first
from mamllit.core.episode import Episode
from mamllit.core.tree import count, item, take, tree_map, vmap
from mamllit.engine.company import Company, company
from mamllit.engine.cpu import fast_on_cpu
from mamllit.engine.known import running
from mamllit.engine.looped import each
from mamllit.engine.meta_gradient import Execution, chunk_size, in_precision_of
from mamllit.engine.trial import Finding, remembered, try_out
from mamllit.methods.base import Method, Predictor, State

BatchNorm = Literal["transductive", "inductive"]
CHUNK = 2**19  # input numbers of the episodes that run at once on a CPU, see `readings`
BATCH_NORMS: tuple[BatchNorm, ...] = ("transductive", "inductive")


def ordinary(episodes: Episode) -> Episode:
    """The episodes with inference tensors copied: in inference mode, Lightning's default in a test, torch 2.8 (not 2.15)
    silently adapts wrongly; out of it, inference tensors cannot be differentiated."""
    return tree_map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, episodes)


def predict(method: Method, state: State, episode: Episode, batch_norm: BatchNorm = "transductive") -> Tensor:
    """Output for the query of one episode, [n, ...]; `batch_norm`: see the module; no difference without batch norm.

    Inductive is the prediction for support and query together, normalised by the support, of which the query's rows are
    kept: right for every method whose `predict` treats the examples separately but for the norm. Where the examples act on each
    other otherwise, each query example is predicted beside the support alone.
    """
    return _predictor(method, episode.support.x.shape[0], batch_norm)(state, episode)


def _predictor(method: Method, rows: int, batch_norm: BatchNorm) -> Predictor:
    """`predict` for episodes of one method, with `rows` examples in each support."""
    if batch_norm == "transductive":
        return lambda state, episode: method.predict(state, episode.query.x)
    found = company(method) or Company("norm")
    if found.kind == "other":

        def beside_support(state: State, episode: Episode) -> Tensor:
            support = episode.support.x
            return torch.cat([method.predict(state, torch.cat([support, x[None]]))[rows:] for x in episode.query.x])

        return beside_support
    by_support = normalised_by_first(method, rows)

    def behind_support(state: State, episode: Episode) -> Tensor:
        with running(found.operators, rows):
            return by_support.predict(state, torch.cat([episode.support.x, episode.query.x]))[rows:]

    return behind_support


def readings(
    method: Method, episodes: Episode, steps: int, batch_norms: Sequence[BatchNorm], execution: Execution = "auto"
) -> dict[BatchNorm, Tensor]:
    """Each episode's `Method.curve`, the metric on the query after 0, 1, ... inner steps, once per way of normalising.

    Adapts once and predicts as often as there are `batch_norms`. Each value is [T, steps + 1] ([T, 1] without inner loop).
    On a CPU the episodes run in vectorised chunks (see `mamllit.engine.meta_gradient.chunk_size`): on Omniglot with 15 queries
    50 episodes at once took 1.5 times as long as 5 at a time, and ten times the memory. A chunk of one episode
    (mini-ImageNet) runs without `vmap`, which takes less time.

    `execution`: "loop" runs all episodes one by one, a number no more than so many at
    once; a network that `vmap` cannot run, or runs wrongly, always runs one by one.
    Runs under `no_grad`, so that no graph through the steps is kept; `torch.func.grad` in the inner loop works all the same.
    """

    predictors: dict[BatchNorm, Predictor] = {}

    def one(episode: Episode) -> dict[BatchNorm, Tensor]:
        return dict(zip(predictors, method.curve(episode, steps, *predictors.values()), strict=True))

    method.heed_frozen()
    with torch.inference_mode(False), torch.no_grad(), fast_on_cpu(episodes.support.x):
        episodes = in_precision_of(method, ordinary(episodes))
        company(method, item(episodes, 0))
        rows = episodes.support.x.shape[1]
        predictors.update({batch_norm: _predictor(method, rows, batch_norm) for batch_norm in batch_norms})
        size = chunk_size("loop" if execution == "loop" else "auto", episodes, CHUNK)
        size = min(size, execution) if isinstance(execution, int) else size
        finding = remembered(method, "prediction", lambda: try_out(method, episodes, _predictions, "predictions"))
        one_by_one = not (method.vectorised and finding.vectorised)
        run = each(one) if one_by_one or size == 1 else vmap(one)
        with running(finding.operators):
            parts = [run(take(episodes, i, i + size)) for i in range(0, count(episodes), size)]
        return {batch_norm: torch.cat([part[batch_norm] for part in parts]) for batch_norm in batch_norms}


def _predictions(method: Method, way: Finding, episodes: Episode) -> Tensor:
    """The predictions after 0, 1 and 2 inner steps as one vector, for a trial that runs as `way` says."""

    def one(episode: Episode) -> dict[str, Tensor]:
        states = method.trajectory(episode.support, 2)
        return {"outputs": torch.stack([method.predict(state, episode.query.x) for state in states])}

    with torch.no_grad(), running(way.operators):
        run = vmap(one) if way.vectorised else each(one)
        return run(episodes)["outputs"].flatten()


def evaluate(method: Method, episodes: Episode, steps: int, inductive: bool = False) -> Tensor:
    """One of the `readings`: [T, steps + 1], transductive as in the paper, or inductive."""
    batch_norm: BatchNorm = "inductive" if inductive else "transductive"
    return readings(method, episodes, steps, (batch_norm,))[batch_norm]
