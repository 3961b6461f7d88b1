"""What the dashboard shows, read back from the offline files of a run on images: a fit, and its resumption by two processes."""

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toy_images import ToyImages

from mamllit.callbacks import WandbDashboard
from mamllit.callbacks.examples import tiles
from mamllit.runs.wandb_file import contents

REPOSITORY = Path(__file__).parents[2]
CELL = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 10,
        "val_check_interval": 5,
        "logger": [
            {"class_path": "WandbLogger", "init_args": {"project": "mamllit", "group": "maml/toy"}},
            {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}},
        ],
    },
    "model": {
        "method": {
            "class_path": "mamllit.methods.MAML",
            "init_args": {
                "backbone": {
                    "class_path": "mamllit.backbones.MLP",
                    "init_args": {"in_features": 64, "hidden": [8], "out_features": 3, "norm": True},
                },
                "objective": "mamllit.objectives.Classification",
                "inner_lr": 0.5,
                "inner_steps": 1,
                "reduction": "mean",
            },
        },
        "eval_steps": 3,
        "report_step": 2,
        "log_every": 5,
        "compile": False,
    },
    "data": {"class_path": "toy_images.ToyImages"},
    "dashboard": {"histograms": 5, "step_sizes": ["0.weight"]},
    "checkpoint_last": {"every_n_train_steps": 5},
}

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`first` and `second`: what the file of the fit and of its resumption hold; `run` is their directory."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "cell.yaml").write_text(f"# Toy.\n# Paper: nobody 2026\n{yaml.safe_dump(CELL)}")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    python_path = os.pathsep.join([str(REPOSITORY / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**inherited, "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    run, found = folder / "runs/maml/toy/seed_0", []
    resumed = ["--ckpt_path", "last", "--trainer.max_steps", "15", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for more in (["--trainer.devices", "1", "--model.method.init_args.inner_lr", "0.25"], resumed):
        known = set(run.glob("wandb/offline-run-*/run-*.wandb"))
        done = subprocess.run(
            [sys.executable, "-m", "mamllit.cli", "fit", "-c", str(folder / "cell.yaml"), "--trainer.default_root_dir",
             str(folder / "runs/maml/toy"), *more],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        (file,) = set(run.glob("wandb/offline-run-*/run-*.wandb")) - known  # one run per job, however many processes
        found.append((file, contents(file)))
        if not known:
            result, episodes = json.loads((run / "result.json").read_text()), (run / "episodes.csv").read_text()
    (file, first), (_, second) = found
    return SimpleNamespace(run=run, files=file.parent / "files", first=first, second=second, result=result, episodes=episodes)


def table(runs: SimpleNamespace, key: str) -> tuple[list[str], list[list[Any]]]:
    (entry,) = [row[key] for row in runs.first.history if key in row]
    read = json.loads((runs.files / entry["path"]).read_text())
    return read["columns"], read["data"]


def test_name_group_and_tags(runs: SimpleNamespace) -> None:
    run = runs.first.run
    assert (run.project, run.run_group, run.job_type) == ("mamllit", "maml/toy", "maml")
    assert run.display_name == "maml/toy/seed_0"
    assert list(run.tags) == ["MAML", "ToyImages", "3-way", "1-shot", "seed 0"]


def test_table_cell_seed_and_what_was_changed(runs: SimpleNamespace) -> None:
    experiment = runs.first.config["experiment"]
    assert [experiment[key] for key in ("table", "cell", "seed", "title", "paper")] == ["maml", "toy", 0, "Toy.", "nobody 2026"]
    assert experiment["changed"]["model.init_args.method.init_args.inner_lr"] == {"experiment": 0.5, "run": 0.25}
    assert set(experiment["changed"]) <= {"model.init_args.method.init_args.inner_lr", "trainer.devices"}
    assert experiment["as_written"] is False


def test_a_resumed_run_goes_on_under_the_same_id(runs: SimpleNamespace) -> None:
    assert runs.first.run.run_id == runs.second.run.run_id == (runs.run / "wandb_run_id").read_text()
    assert steps(runs.first, "train/meta_loss") == [4, 9]
    assert steps(runs.second, "train/meta_loss") == [14]


def steps(logged: SimpleNamespace, key: str) -> list[int]:
    return sorted({row["trainer/global_step"] for row in logged.history if key in row})


@pytest.mark.parametrize(("part", "count"), [("first", 2), ("second", 1)])
def test_episodes_seen_are_an_axis(runs: SimpleNamespace, part: str, count: int) -> None:
    for key in ("train/meta_loss", "val/accuracy"):
        rows = [row for row in getattr(runs, part).history if key in row]
        assert len(rows) == count
        for row in rows:
            assert row["trainer/episodes"] == 4 * (row["trainer/global_step"] + 1)


def test_adaptation_curves_are_native_charts(runs: SimpleNamespace) -> None:
    charts = runs.first.config["_wandb"]["visualize"]
    for key, names in (("adaptation/val", ["val"]), ("adaptation/standard[5]", ["standard[5]", "standard[5]/inductive"])):
        assert charts[key]["panel_type"] == "Vega2"
        assert charts[key]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        columns, rows = table(runs, f"{key}_table")
        drawn = {(row[columns.index("lineKey")], row[columns.index("step")]): row[columns.index("lineVal")] for row in rows}
        for name in names:
            result = runs.result["results"][name]
            for step in range(4):
                assert drawn[name, step] == pytest.approx(result["mean"][step])
                width = drawn[f"{name}, 95% high", step] - drawn[f"{name}, 95% low", step]
                assert width == pytest.approx(2 * result["ci95"][step])


def test_the_table_of_episodes_has_their_images_and_predictions(runs: SimpleNamespace) -> None:
    pictures = picture_files(runs)
    read = json.loads(Path(pictures["test/episodes.table.json"]).read_text())
    assert table(runs, "test/episodes")[0] == read["columns"]
    columns, rows = read["columns"], read["data"]  # the artifact's, which names the images
    assert columns == [
        "episode", "support", "query", "class", "before adapting", "after 2 steps", "probability of the class",
    ]  # fmt: skip
    assert len(rows) == 2 * 3 * 3  # episodes, ways, queries
    data = ToyImages()
    data.setup("test")
    (evaluation,) = data.evaluation_sets("test")
    batch = data.episodes(evaluation, 0, 2).episodes
    for number in (0, 1):
        own = [dict(zip(columns, row, strict=True)) for row in rows if row[0] == number]
        assert [row["class"] for row in own] == batch.query.y[number].tolist()
        support = tiles(batch.support.x[number].unflatten(0, (3, -1)))
        for i, row in enumerate(own):
            assert np.array_equal(pixels(pictures, row["support"]), support)
            assert np.array_equal(pixels(pictures, row["query"]), tiles(batch.query.x[number][i][None, None]))
            assert 0 <= row["probability of the class"] <= 1
        for column, inner in (("before adapting", 0), ("after 2 steps", 2)):
            share = np.mean([row[column] == row["class"] for row in own])
            assert share == pytest.approx(measured(runs, number, inner))


def picture_files(runs: SimpleNamespace) -> dict[str, str]:
    entries = [entry for artifact in runs.first.artifacts for entry in artifact.manifest.contents]
    return {entry.path: entry.local_path for entry in entries}


def pixels(pictures: dict[str, str], image: dict[str, Any]) -> np.ndarray:
    assert image["_type"] == "image-file"
    return np.asarray(Image.open(pictures[image["path"]]).convert("L"))


def measured(runs: SimpleNamespace, episode: int, inner: int) -> float:
    rows = csv.DictReader(runs.episodes.splitlines())
    key = ("standard[5]", "transductive", str(episode), str(inner))
    return next(float(r["accuracy"]) for r in rows if (r["set"], r["batch_norm"], r["episode"], r["steps"]) == key)


def test_histograms_of_gradients_and_step_sizes(runs: SimpleNamespace) -> None:
    sizes = {"backbone.layers.0.weight": 64 * 8, "backbone.layers.1.bias": 3, "backbone.norms.0.beta": 8}
    for name, size in sizes.items():
        assert steps(runs.first, f"gradients/{name}") == [4, 9]
        for row in runs.first.history:
            if (histogram := row.get(f"gradients/{name}")) and "values" in histogram:
                assert sum(histogram["values"]) == size
    assert steps(runs.first, "step_sizes/backbone.layers.0.weight") == [4, 9]
    assert not steps(runs.first, "step_sizes/backbone.layers.1.bias")


def test_the_best_checkpoint_is_an_artifact(runs: SimpleNamespace) -> None:
    (model,) = [artifact for artifact in runs.first.artifacts if artifact.type == "model"]
    assert model.name == f"model-{runs.first.run.run_id}"
    assert "best" in model.aliases
    assert json.loads(model.metadata) == runs.result["best_checkpoint"]
    (entry,) = model.manifest.contents
    kept = Path(entry.local_path)
    assert kept.is_relative_to(runs.run / "wandb")  # waits for `wandb sync` beside the run
    assert base64.b64encode(hashlib.md5(kept.read_bytes()).digest()).decode() == entry.digest
    assert torch.load(kept, weights_only=True)["global_step"] == runs.result["best_checkpoint"]["step"]


# ---- without a run ---------------------------------------------------------------------------------------------------


def test_images_are_put_side_by_side() -> None:
    images = torch.arange(6.0).div(5).reshape(3, 2, 1, 1, 1).expand(3, 2, 1, 2, 2)  # 3 columns of 2
    picture = tiles(images, gap=1)
    assert picture.shape == (5, 8)
    assert picture[::3, ::3].tolist() == [[0, 102, 204], [51, 153, 255]]
    assert (picture[2] == 255).all()
    assert tiles(torch.rand(1, 1, 3, 4, 4)).shape == (4, 4, 3)


@pytest.mark.parametrize("wrong", [{"episodes": -1}, {"histograms": -5}])
def test_negative_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"episodes is -?\d and histograms -?\d; both must be >= 0 \(0: none\)"):
        WandbDashboard(**wrong)


def test_without_histograms_no_step_pays_for_them() -> None:
    assert WandbDashboard().on_before_optimizer_step is None
    assert callable(WandbDashboard(histograms=5).on_before_optimizer_step)
