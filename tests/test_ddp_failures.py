"""Two processes (gloo, on the CPU) that are stopped, or meet a loss that is not finite: both decide alike, nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow  # starts processes

REPOSITORY = Path(__file__).parents[1]
SPOILT = 27  # in the meta-batch of step 7, four episodes each, from 0; of these the last two are the second rank's
FIT = [
    "fit", "-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml"),
    "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--test_after_fit", "false",
    "--trainer.val_check_interval", "6",
]  # fmt: skip
# One pair of processes makes all runs, one after the other: starting a pair takes longer than the runs.
SCRIPT = """
import json, os, signal, sys
from mamllit import cli
from mamllit.callbacks import CleanStop
from mamllit.data import SineDataModule
from mamllit.systems.guard import NonFiniteMetaLoss

runs, out = json.load(open(sys.argv[1])), sys.argv[2]
fit, spoilt = runs.pop("fit"), runs.pop("spoilt")
rank = int(os.environ.get("LOCAL_RANK", "0"))
now = {}
build, batch_end = SineDataModule.build, CleanStop.on_train_batch_end

def with_nan(self, drawn):
    batch = build(self, drawn)
    if now.get("nan") and self.trainer.training:
        batch.episodes.query.y[batch.number == spoilt] = float("nan")
    return batch

def with_signal(self, trainer, *rest):
    if trainer.global_step == 7 and rank in now.get("ranks", []):
        os.kill(os.getpid(), now["signal"])
    batch_end(self, trainer, *rest)

SineDataModule.build, CleanStop.on_train_batch_end = with_nan, with_signal
seen = {}
for name, now in runs.items():
    root = os.path.join(out, now["root"])
    try:
        done = cli.run([*fit, "--trainer.default_root_dir", root, "--trainer.max_steps", "12", *now.get("more", [])])
        seen[name] = [done.trainer.world_size, done.trainer.global_step, done.model.skipped_steps]
    except SystemExit as ended:
        seen[name] = ended.code
    except NonFiniteMetaLoss as error:
        seen[name] = str(error)
json.dump(seen, open(os.path.join(out, f"rank{rank}.json"), "w"))
"""
RESUME = ["--ckpt_path", "last"]
BEFORE = "nan/seed_0/checkpoints/before_step7.ckpt"
RUNS: dict[str, dict[str, Any]] = {
    "whole": {"root": "whole"},
    "SIGTERM": {"root": "sigterm", "signal": signal.SIGTERM, "ranks": [1]},
    "SIGTERM, resumed": {"root": "sigterm", "more": RESUME},
    "SIGINT": {"root": "sigint", "signal": signal.SIGINT, "ranks": [0, 1]},  # Ctrl-C reaches every process of the terminal
    "SIGINT, resumed": {"root": "sigint", "more": RESUME},
    "skip": {"root": "skip", "nan": True, "more": ["--model.non_finite", "skip"]},
    "stop": {"root": "nan", "nan": True},
    "stop, resumed": {"root": "nan"},
}


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    return inherited | {"OMP_NUM_THREADS": "1", **more}


@contextmanager
def started(words: list[str], log: Path, **more: str) -> Iterator[subprocess.Popen]:
    """A process with a session of its own, whose processes all end with the test."""
    with log.open("w") as file:
        process = subprocess.Popen(
            words, env=environment(**more), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`out`: where the runs of RUNS lie; `ranks`: what each rank saw of each; `printed`: what both printed."""
    out = tmp_path_factory.mktemp("two")
    RUNS["stop, resumed"]["more"] = ["--ckpt_path", str(out / BEFORE)]
    (out / "runs.json").write_text(json.dumps({"fit": FIT, "spoilt": SPOILT, **RUNS}))
    (out / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-W", "ignore", str(out / "script.py"), str(out / "runs.json"), str(out)]
    with started(words, out / "log.txt") as process:
        code = process.wait(timeout=240)
    printed = (out / "log.txt").read_text()
    assert code == 0, printed
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return SimpleNamespace(out=out, ranks=ranks, printed=printed)


def state(root: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(root / "seed_0/checkpoints" / f"{name}.ckpt", weights_only=False)


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    moments = [run["optimizer_states"][0]["state"] for run in (one, other)]
    assert one["global_step"] == other["global_step"] == 12
    return all(torch.equal(one["state_dict"][name], value) for name, value in other["state_dict"].items()) and all(
        torch.equal(moments[0][i][key], value) for i, entry in moments[1].items() for key, value in entry.items()
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_any_rank_stops_all_after_the_same_step(two: SimpleNamespace, name: str) -> None:
    code = 128 + getattr(signal, name)
    assert [rank[name] for rank in two.ranks] == [code, 0]  # the first speaks for all: launchers kill the rest where one fails
    said = f"stopped by {name} after step 7, saved as {two.out}/{name.lower()}/seed_0/checkpoints/last.ckpt; resume with"
    assert two.printed.count(said) == 1
    assert [rank[f"{name}, resumed"] for rank in two.ranks] == [[2, 12, 0]] * 2
    assert same_bits(state(two.out / name.lower()), state(two.out / "whole"))


def test_the_result_of_a_stopped_run_is_that_of_the_whole_one(two: SimpleNamespace) -> None:
    results = [
        json.loads((two.out / name / "seed_0/result.json").read_text()) for name in ("whole", "sigterm", "sigint", "nan")
    ]
    for other in results[1:]:
        assert other["results"] == results[0]["results"]
        assert other["best_checkpoint"] == results[0]["best_checkpoint"]


def test_a_loss_that_is_not_finite_stops_both_with_the_same_words(two: SimpleNamespace) -> None:
    texts = [rank["stop"] for rank in two.ranks]
    assert texts[0] == texts[1]  # the episode is the second rank's: the first says so too
    assert texts[0].startswith(
        f"meta-loss nan at step 7: not finite for the training episodes {SPOILT} (seed 0), in the gradient of method.backbone."
    )
    assert str(two.out / BEFORE) in texts[0]
    assert [rank["stop, resumed"] for rank in two.ranks] == [[2, 12, 0]] * 2  # with the cause removed
    assert same_bits(state(two.out / "nan"), state(two.out / "whole"))


def test_by_option_both_leave_the_step_out(two: SimpleNamespace) -> None:
    assert [rank["skip"] for rank in two.ranks] == [[2, 12, 1]] * 2
    assert '"skipped_steps": 1' in (two.out / "skip/seed_0/result.json").read_text()
    saved = state(two.out / "skip")
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert all(float(entry["step"]) == 11 for entry in saved["optimizer_states"][0]["state"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "group"), [("SIGTERM", False), ("SIGINT", True)], ids=["kill", "Ctrl-C"])
def test_a_signal_from_outside(name: str, group: bool, tmp_path: Path) -> None:
    """`kill PID` of the process that was started, and a Ctrl-C, which the terminal gives to all processes."""
    words = [sys.executable, "-m", "mamllit.cli", *FIT, "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps"]
    last = tmp_path / "seed_0/checkpoints/last.ckpt"
    with started([*words, "1000000"], tmp_path / "log.txt", PYTHONWARNINGS="ignore") as process:
        end = time.monotonic() + 240
        while not last.exists():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        (os.killpg if group else os.kill)(process.pid, getattr(signal, name))
        code = process.wait(timeout=120)
    printed = (tmp_path / "log.txt").read_text()
    assert code == 128 + getattr(signal, name), printed
    assert "Traceback" not in printed
    found = re.search(rf"stopped by {name} after step (\d+), saved as {last}; resume with --ckpt_path last", printed)
    assert found, printed
    step = int(found[1])
    assert state(tmp_path)["global_step"] == step
    result = json.loads((tmp_path / "seed_0/result.json").read_text())
    assert result["steps_done"] == step
    assert result["fit"]["stopped"].startswith(f"Stopped: stopped by {name}")
    with started([*words, str(step + 5), "--ckpt_path", "last"], tmp_path / "log.txt") as process:
        assert process.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()
    assert state(tmp_path)["global_step"] == step + 5
