"""Weights & Biases offline, with no account and nobody to ask: what a run's own file holds afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mamllit.runs.wandb_file import contents

REPOSITORY = Path(__file__).parents[1]
SINE = str(REPOSITORY / "experiments" / "maml" / "sine_10shot.yaml")
SMALL = str(REPOSITORY / "tests" / "small.yaml")

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small run in a process of its own: its folder, what it printed, its records by kind."""
    folder = tmp_path_factory.mktemp("wandb")
    private = ("WANDB_", "NETRC")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    done = subprocess.run(
        [sys.executable, "-m", "mamllit.cli", "fit", "-c", SINE, "-c", SMALL, "--wandb", "offline",
         "--trainer.default_root_dir", str(folder / "runs")],
        env={**environment, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    run = folder / "runs" / "seed_0"
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    logged = contents(file)
    result = json.loads((run / "result.json").read_text())
    return SimpleNamespace(
        run=run, files=file.parent / "files", printed=done.stdout, found=logged.records, config=logged.config,
        summary=logged.summary, history=logged.history, result=result,
    )  # fmt: skip


def series(history: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {row["trainer/global_step"]: row[name] for row in history if name in row}


def test_the_run_is_complete_and_asks_for_nothing(wandb_run: SimpleNamespace) -> None:
    kinds = {record.WhichOneof("record_type") for record in wandb_run.found}
    assert "exit" in kinds
    assert next(r.exit.exit_code for r in wandb_run.found if r.WhichOneof("record_type") == "exit") == 0
    for question in ("API key", "wandb: (1)", "Enter your choice"):
        assert question not in wandb_run.printed
    run = next(record.run for record in wandb_run.found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group) == ("mamllit", "maml/sine_10shot")
    assert run.display_name == "/".join(wandb_run.run.parts[-3:])


def test_the_whole_configuration_is_there(wandb_run: SimpleNamespace) -> None:
    config = wandb_run.config
    method = config["model"]["init_args"]["method"]
    assert method["class_path"] == "mamllit.methods.MAML"
    assert method["init_args"]["inner_lr"] == 0.01
    assert method["init_args"]["reduction"] == "sum_over_shots"
    assert method["init_args"]["backbone"]["init_args"]["hidden"] == [40, 40]
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001
    assert config["data"]["init_args"]["meta_batch_size"] == 4
    assert config["seed_everything"] == 0
    assert config["trainer"]["max_steps"] == 22


def test_training_and_validation_metrics_are_there_once_each(wandb_run: SimpleNamespace) -> None:
    assert sorted(series(wandb_run.history, "train/meta_loss")) == [4, 9, 14, 19]  # log_every: 5
    assert sorted(series(wandb_run.history, "train/mse")) == [4, 9, 14, 19]
    validated = series(wandb_run.history, "val/mse")
    assert sorted(validated) == [9, 19]
    assert validated[19] == pytest.approx(wandb_run.result["results"]["val"]["mean"][1], rel=1e-6)


def test_test_metrics_are_there(wandb_run: SimpleNamespace) -> None:
    for steps, mean in enumerate(wandb_run.result["results"]["paper[20]"]["mean"]):
        (value,) = series(wandb_run.history, f"test/paper[20]/mse_step{steps}_mean").values()
        assert value == pytest.approx(mean, rel=1e-6)


def test_the_figures_are_there_as_images(wandb_run: SimpleNamespace) -> None:
    for name in ("learning_curve", "adaptation_5shot"):
        (entry,) = [row[f"figures/{name}"] for row in wandb_run.history if f"figures/{name}" in row]
        assert (entry["_type"], entry["count"]) == ("images/separated", 1)
        (image,) = entry["filenames"]
        assert (wandb_run.files / image).read_bytes() == (wandb_run.run / "figures" / f"{name}.png").read_bytes()


def test_the_result_table_is_there(wandb_run: SimpleNamespace) -> None:
    (entry,) = [row["test/results"] for row in wandb_run.history if "test/results" in row]
    assert entry["_type"] == "table-file"
    table = json.loads((wandb_run.files / entry["path"]).read_text())
    rows = {(row[0], row[1]): dict(zip(table["columns"][2:], row[2:], strict=True)) for row in table["data"]}
    test = wandb_run.result["results"]["paper[20]"]
    assert {steps for name, steps in rows if name == "paper[20]"} == {0, 1, 2, 3}
    for steps in range(4):
        row = rows["paper[20]", steps]
        for field in ("mean", "ci95", "median", "diverged"):
            assert row[field] == pytest.approx(test[field][steps])
        assert (row["episodes"], row["queries"], row["batch_norm"]) == (20, 5, "none")


def test_the_best_checkpoints_metadata_are_in_the_summary(wandb_run: SimpleNamespace) -> None:
    best = wandb_run.summary["best_checkpoint"]
    assert best == wandb_run.result["best_checkpoint"]
    assert set(best) == {"path", "monitor", "score", "step"}
    assert (wandb_run.run / best["path"]).is_file()
    validated = series(wandb_run.history, "val/mse")
    assert best["score"] == pytest.approx(validated[best["step"] - 1], rel=1e-6)
    assert best["score"] == pytest.approx(min(validated.values()), rel=1e-6)
