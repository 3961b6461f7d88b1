"""The kill soak: python experiments/soak.py --kills 200 --out runs/soak

A short sine run is killed with SIGKILL at random moments, resumed with `--ckpt_path last` each time, and compared with a run
that was left alone: weights, optimiser, validations and best checkpoint must be the same bits. When a run reaches its end a new
one begins, until there have been as many kills as were asked for. The sessions are forked from this process, so that a kill
costs seconds; writes soak.json, and the exit code is 1 where something differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mamllit import cli
from mamllit.runs.checkpoint_io import newest, read

EXPERIMENTS = Path(__file__).parent
SMALL = [
    "--model.compile", "false", "--model.log_every", "7", "--data.meta_batch_size", "4", "--data.test_shots", "[5]",
    "--data.val_episodes", "10", "--trainer.val_check_interval", "50", "--checkpoint_last.every_n_train_steps", "20",
    "--test_after_fit", "false", "--wandb", "disabled", "--progress.refresh", "0",
]  # fmt: skip


def session(root: Path, steps: int) -> int:
    """Fork a `mamllit fit` that goes on from the last checkpoint; its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    root.mkdir(parents=True, exist_ok=True)
    log = os.open(root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        cell = EXPERIMENTS / "maml" / "sine_10shot.yaml"
        sys.argv = ["mamllit"]
        cli.run(
            ["fit", "-c", str(cell), *SMALL, "--trainer.default_root_dir", str(root), "--trainer.max_steps", str(steps),
             "--ckpt_path", "last", "--begin_if_none", "true"]
        )  # fmt: skip
        code = 0
    finally:
        os._exit(code)


def wait(process: int, seconds: float | None) -> bool:
    """Whether the session has ended by itself; after `seconds` it is killed. A session that fails ends the soak."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a session failed with status {status}; see log.txt in the run's folder")
            return True
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def differences(run: Path, whole: Path) -> list[str]:
    """What of `run` is not bit for bit that of `whole`."""
    wrong = []
    for name in ("last", "best"):
        one, other = (read(folder / "checkpoints" / f"{name}.ckpt") for folder in (run, whole))
        if one is None or other is None:
            wrong.append(f"{name}.ckpt is missing or damaged")
            continue
        for part in ("global_step", "state_dict", "optimizer_states"):
            if not same(one[part], other[part]):
                wrong.append(f"{part} of {name}.ckpt")
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    wrong += [f"{part} of result.json" for part in ("results", "best_checkpoint") if one.get(part) != other.get(part)]
    return wrong


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def soak(out: Path, kills: int, steps: int, longest: float | None, seed: int) -> dict[str, Any]:
    """Kill `kills` times; what happened. `longest` is the longest life of a session in seconds (None: of one left alone)."""
    whole = out / "whole"
    began = time.monotonic()
    wait(session(whole, steps), None)
    longest = longest or time.monotonic() - began
    moment = random.Random(seed)
    done = rounds = resumed = none_yet = 0
    wrong: list[str] = []
    began = time.monotonic()
    reached: list[int] = []
    finished = False
    while done < kills or not finished:
        root = out / f"round{rounds}"
        finished = wait(session(root, steps), moment.uniform(0.1, longest) if done < kills else None)
        if finished:
            wrong += [f"round {rounds}: {text}" for text in differences(root / "seed_0", whole / "seed_0")]
            rounds += 1
        else:
            done += 1
            found = newest(root / "seed_0" / "checkpoints")
            checkpoint = None if found is None else read(found)
            resumed += checkpoint is not None
            none_yet += checkpoint is None
            reached.append(0 if checkpoint is None else checkpoint["global_step"])
        report = {
            "kills": done, "before_the_first_checkpoint": none_yet, "with_a_checkpoint": resumed, "runs_finished": rounds,
            "steps": steps, "different": wrong, "seconds": round(time.monotonic() - began), "killed_at": reached,
        }  # fmt: skip
        (out / "soak.json").write_text(json.dumps(report, indent=2))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--steps", type=int, default=1000, help="meta-updates of a run (1000)")
    parser.add_argument("--longest", type=float, help="seconds that a session lives at most (as long as one left alone)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.out.exists() and any(asked.out.iterdir()):
        parser.error(f"--out is {asked.out}, which is not empty; name a new folder")
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    report = soak(asked.out, asked.kills, asked.steps, asked.longest, asked.seed)
    print(json.dumps({key: value for key, value in report.items() if key != "killed_at"}, indent=2))
    return 1 if report["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
