"""experiments/learn2learn/metacurvature_taskset.py, run as its user runs it: on toy images always, on Omniglot where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mamllit.runs.wandb_file import contents

pytest.importorskip("learn2learn", reason="learn2learn is not installed (tests/requirements-oracle.txt)")

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "experiments/learn2learn/metacurvature_taskset.py"
STEPS = 20
# The script itself, with toy images of Omniglot's shape in the place of those that it would load from --root.
TOY = f"""
import runpy

import numpy as np
import torch

from mamllit.data.sources import omniglot as omniglot_source
from mamllit.data.pool import ClassPool


def pool(seed: int) -> ClassPool:
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 2, (12, 1, 1, 4, 4)).repeat(7, -1).repeat(7, -2) * 255  # 16 squares for each class
    images = torch.from_numpy((kinds * (random.random((12, 6, 1, 28, 28)) < 0.9)).astype(np.uint8))
    return ClassPool(images.flatten(0, 1), np.arange(13) * 6, tuple(str(c) for c in range(12)))


def load(root: str, split: str, resize: str, download: bool) -> dict[str, ClassPool]:
    assert (root, split, resize, download) == ("toy", "vinyals", "nearest", False)
    return {{name: pool(seed) for seed, name in enumerate(("train", "val", "test"))}}


omniglot_source.load_omniglot = load
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""


def run(words: list[str], out: Path) -> tuple[str, dict[str, list[float]]]:
    """Runs it; what it printed, and the mean accuracies of its result by evaluation set."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words, "--steps", str(STEPS), "--meta-batch-size", "4", "--test-episodes", "20", "--out", str(out)],
        env={**environment, "HOME": str(out.parent), "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["steps_done"], result["metric"]) == (STEPS, "accuracy")
    return done.stdout, {name: entry["mean"] for name, entry in result["results"].items()}


@pytest.mark.slow
def test_a_learn2learn_script_trains_and_tests_through_mamllit(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    out = tmp_path / "run"
    printed, accuracy = run([str(tmp_path / "toy.py"), "--root", "toy"], out)
    assert "accuracy on meta-test after n gradient steps" in printed
    assert accuracy["taskset[20]"][0] < 0.5 and accuracy["taskset[20]"][5] > 0.8  # of 5 ways: adapting helps
    (file,) = out.glob("wandb/offline-run-*/run-*.wandb")
    logged = contents(file)
    assert [row["trainer/global_step"] for row in logged.history if "train/meta_loss" in row] == [9, 19]
    assert any("test/results" in row for row in logged.history)
    assert {path.name for path in (out / "figures").glob("*.png")} >= {"learning_curve.png"}


@pytest.mark.slow
@pytest.mark.real_data
def test_it_runs_on_omniglot(tmp_path: Path) -> None:
    if not (images := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    _, accuracy = run([str(EXAMPLE), "--root", images], tmp_path / "run")
    assert accuracy["taskset[20]"][0] < 0.5 and accuracy["taskset[20]"][5] > 0.5
