"""Whole sine runs, `mamllit fit` against a learn2learn loop, alternating: `python experiments/benchmarks/whole_run.py`.

mamllit runs as a user runs it: a process of its own, compiling from a cold cache, Trainer, validation, CSV and offline W&B.
learn2learn gets the better of each doubt: the same episodes, drawn by the same code; clone, adapt, one backward over the
meta-batch and Adam; no Trainer, no logging; its start-up is not counted, and its time for the whole run is scaled up from
fewer iterations. The two meta-gradients are compared before anything is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.backbones import MLP
from mamllit.data import SineDataModule
from mamllit.engine import MetaGradient
from mamllit.episode import Episode
from mamllit.methods import MAML
from mamllit.objectives import Regression

CONFIG = Path(__file__).parents[1] / "maml" / "sine_10shot.yaml"


def learn2learn_loss(learner, episodes: Episode) -> Tensor:
    """The mean query loss of the batch, with learn2learn's clone and adapt."""
    total = torch.zeros(())
    for support_x, support_y, query_x, query_y in zip(*episodes.support, *episodes.query, strict=True):
        clone = learner.clone()
        clone.adapt(F.mse_loss(clone(support_x), support_y))
        total = total + F.mse_loss(clone(query_x), query_y)
    return total / len(episodes.support.x)


def check_gradients() -> float:
    """Largest relative difference between the two meta-gradients, float64."""
    import learn2learn as l2l

    net = MLP(1, [40, 40], 1).double()
    data = SineDataModule()
    episodes = data.build(data.draw(0, "train", 10, 10, 0, 25)).episodes
    episodes = Episode(*(type(part)(part.x.double(), part.y.double()) for part in episodes))
    ours = MetaGradient(MAML(net, Regression(), 0.01, 1, "sum_over_shots"))(episodes).gradient
    learner = l2l.algorithms.MAML(net, lr=0.01)
    learn2learn_loss(learner, episodes).backward()
    theirs = dict(net.named_parameters())
    return max(float((g - theirs[name.removeprefix("method.backbone.")].grad).norm() / g.norm()) for name, g in ours.items())


def run_learn2learn(iterations: int) -> float:
    """Seconds per iteration."""
    import learn2learn as l2l

    data = SineDataModule()
    learner = l2l.algorithms.MAML(MLP(1, [40, 40], 1), lr=0.01)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    start = time.perf_counter()
    for step in range(iterations):
        episodes = data.build(data.draw(0, "train", 10, 10, 25 * step, 25)).episodes
        optimizer.zero_grad()
        learn2learn_loss(learner, episodes).backward()
        optimizer.step()
    return (time.perf_counter() - start) / iterations


def run_mamllit(iterations: int, threads: int) -> tuple[float, float]:
    """Seconds of the whole process, and iterations per second inside the fit (the compilation included)."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache", "WANDB_SILENT": "true"
        }  # fmt: skip
        command = [sys.executable, "-m", "mamllit.cli", "fit", "-c", str(CONFIG), "--test_after_fit", "false"]
        command += ["--trainer.max_steps", str(iterations), "--trainer.default_root_dir", folder]
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        result = json.loads((Path(folder) / "seed_0" / "result.json").read_text())
        return seconds, result["fit"]["iterations_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=70000, help="of mamllit (default: the paper's run)")
    parser.add_argument("--peer-iterations", type=int, default=1500, help="of learn2learn, scaled up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    difference = check_gradients()
    assert difference < 1e-6, f"the meta-gradients differ by {difference}"
    print(f"meta-gradients agree to {difference:.1e} (float64, relative)")
    whole, inside, peer = [], [], []
    for number in range(options.rounds):
        seconds, rate = run_mamllit(options.iterations, options.threads)
        per_iteration = run_learn2learn(options.peer_iterations)
        whole.append(seconds)
        inside.append(rate)
        peer.append(per_iteration * options.iterations)
        print(
            f"round {number + 1}: mamllit {seconds:.1f} s ({rate:.0f} it/s in fit), "
            f"learn2learn {peer[-1]:.0f} s ({1 / per_iteration:.1f} it/s), ratio {peer[-1] / seconds:.1f}",
            flush=True,
        )
    ratios = [b / a for a, b in zip(whole, peer, strict=True)]
    print(f"medians over {options.rounds} rounds, {options.iterations} iterations, {options.threads} threads:")
    print(f"  mamllit fit  {statistics.median(whole):8.1f} s   {options.iterations / statistics.median(whole):8.1f} it/s")
    print(f"  learn2learn  {statistics.median(peer):8.1f} s   {options.iterations / statistics.median(peer):8.1f} it/s")
    print(f"  ratio        {statistics.median(ratios):8.1f}   ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
