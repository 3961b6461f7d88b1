"""What trained regression runs know of their own errors: python experiments/uncertainty.py RUN... --noise 0.3

For each run directory: negative log-likelihood and coverage of the 90% interval on its meta-test tasks, with Gaussian noise of
the given standard deviation around each model; the mean squared error when five more labels are asked for, where the models
differ most or at random; and figures/samples.png, for an MT-net figures/masks.png, beside the run's own. One table row per run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import mamllit.data
from mamllit.core.episode import Episode, Examples
from mamllit.data import EpisodicDataModule
from mamllit.engine.uncertainty import active_learning, calibration, samples
from mamllit.figures.sample_plots import mask_probabilities, predictive_samples
from mamllit.methods import Method, MTNet
from mamllit.pretrained.build import build
from mamllit.runs.tracking import of_system

LABELS = 5


def load(run: Path) -> tuple[Method, EpisodicDataModule, int]:
    """The method with its last weights, the data, and the number of inner steps that the run reports."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    model = of_system(config)
    method: Method = build(model["method"])
    saved = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    method.load_state_dict({name.removeprefix("method."): value for name, value in saved.items()})
    data: dict[str, Any] = config["data"]
    kind = getattr(mamllit.data, data["class_path"].rsplit(".", 1)[-1])
    return method, kind(**data["init_args"]), model["report_step"]


def figures(method: Method, data: Any, steps: int, folder: Path, title: str) -> None:
    """Three tasks' sampled models, and an MT-net's masks."""
    folder.mkdir(exist_ok=True)
    x, evaluation = torch.linspace(-5, 5, 200), data.evaluation_sets("test")[0]
    support = data.episodes(evaluation, 0, 3).episodes.support
    with torch.no_grad():
        states = [method.adapt(Examples(support.x[i], support.y[i]), steps) for i in range(3)]
        drawn = torch.stack([samples(method, state, x[:, None])[..., 0] for state in states])
    truth = torch.stack([data.truth(evaluation, i, x) for i in range(3)])
    predictive_samples(x, truth, support.x[..., 0], support.y[..., 0], drawn, title).savefig(folder / "samples.png", dpi=130)
    if isinstance(method, MTNet):
        mask_probabilities(method.mask_probabilities(), title).savefig(folder / "masks.png", dpi=130)


def row(run: Path, noise: float, tasks: int) -> str:
    """One line of the table."""
    method, data, steps = load(run)
    name = type(method).__name__
    evaluation = data.evaluation_sets("test")[0]
    tasks = min(tasks, evaluation.episodes)
    support, query = data.episodes(evaluation, 0, tasks).episodes
    judged = calibration(method, Episode(support, query), steps, noise)
    half = query.x.shape[1] // 2
    pool, rest = (Examples(query.x[:, part], query.y[:, part]) for part in (slice(half), slice(half, None)))
    asked = [active_learning(method, support, pool, rest, steps, LABELS, choice).mean(0) for choice in ("spread", "random")]
    figures(method, data, steps, run / "figures", f"{name}, {evaluation.name}, {steps} inner steps")
    cells = [f"{judged.nll.mean():.3f}", f"{judged.nll.median():.3f}", f"{100 * judged.coverage.mean():.1f}%"]
    cells += [f"{asked[0][0]:.3f}", f"{asked[0][-1]:.3f}", f"{asked[1][-1]:.3f}"]
    return f"| {name} | {run} | {tasks} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of sine experiments")
    parser.add_argument("--noise", type=float, required=True, help="standard deviation of the noise around each model")
    parser.add_argument("--tasks", type=int, default=500, help="meta-test tasks (500)")
    parsed = parser.parse_args(arguments)
    print(f"| method | run | tasks | NLL | median NLL | in 90% | MSE | after {LABELS} labels | after {LABELS} random labels |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in parsed.runs:
        print(row(run, parsed.noise, parsed.tasks), flush=True)


if __name__ == "__main__":
    main()
