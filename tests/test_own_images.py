"""The road of a user with a folder of images, by the commands of README.md: train on it, export, adapt to new classes."""

import contextlib
import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mamllit import cli
from mamllit.data import ImageFolderDataModule

ROOT = Path(__file__).parents[1]
QUICK = ["--model.compile", "false", "--wandb", "disabled", "--trainer.accelerator", "cpu"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of experiments/."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards
    return tmp_path


def mamllit(*words: object) -> str:
    """What the command prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["mamllit", *map(str, words)])
        cli.main()
    return printed.getvalue()


def hold_out(images: Path, folder: Path, ways: int = 5) -> list[str]:
    """Support (the first image) and query (the others) folders of classes that training does not see; their names."""
    data = ImageFolderDataModule(images, image_size=28, channels=1, standard_queries=5)
    names = list(data.load()["test"].names[:ways])
    for name in names:
        for i, file in enumerate(sorted((images / name).glob("*.png"))):
            part = folder / ("query" if i else "support") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, part)
    return names


def the_whole_road(folder: Path, steps: int, *more: object) -> float:
    """From `folder`/images to predictions of held-out classes; their accuracy, read from the CSV."""
    names = hold_out(folder / "images", folder)
    trainer = ["--trainer.max_steps", steps, "--trainer.val_check_interval", steps]
    evaluation = ["--data.test_episodes", 10, "--data.val_episodes", 10]
    fit = ["fit", "-c", "experiments/own_images.yaml", "--data.root", "images"]
    mamllit(*fit, *trainer, *evaluation, *QUICK, *more)
    printed = mamllit("export", "runs/own_images/seed_0")
    assert f"trained for {steps} of {steps} iterations; measured: accuracy after 5 steps: paper[10] " in printed
    references = json.loads((folder / "runs/own_images/seed_0/result.json").read_text())["references"]
    assert set(references) == {"paper[10]", "standard[10]"}
    assert all(0.2 < values["nearest mean, pixels"][0] <= 1 and values["chance"] == [0.2, 0] for values in references.values())
    checkpoint = "runs/own_images/seed_0/own_images.safetensors"
    assert (folder / checkpoint).stat().st_size < 500_000
    printed = mamllit("adapt", "--checkpoint", checkpoint, "--support", "support", "--query", "query", "--out", "adapted")
    with open(folder / "adapted" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "predicted", "true", "unsure", "nearest", *(f"p({name})" for name in names)]
    assert {row["true"] for row in rows} == set(names)
    right = sum(row["predicted"] == row["true"] for row in rows)
    assert f"{len(rows)} images, 5 classes, " in printed
    assert f"; {right} of {len(rows)} with a known class are right" in printed
    with Image.open(folder / "adapted" / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 500
    return right / len(rows)


@pytest.mark.slow
def test_toy_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(30):
        coarse = random.integers(0, 2, (7, 7)) * 180
        own = folder / "images" / f"class{number:02}"
        own.mkdir(parents=True)
        for i in range(8):
            pixels = np.kron(coarse, np.ones((5, 5))) + random.normal(40, 20, (35, 35))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(own / f"{i}.png")
    small = ["--model.method.init_args.backbone.init_args.filters", 16, "--data.meta_batch_size", 2]
    assert the_whole_road(folder, 3, *small) > 0.6  # chance is 0.2; noise on a pattern is easy, even after 3 iterations


@pytest.mark.slow
@pytest.mark.real_data
def test_thirty_characters_of_omniglot(folder: Path) -> None:
    given = os.environ.get("MAMLLIT_OMNIGLOT")
    if not given or not (root := Path(given).expanduser() / "images_background").is_dir():
        pytest.skip("MAMLLIT_OMNIGLOT is not set to a folder with the extracted images_background/")
    for source in sorted(path for path in root.glob("*/*") if path.is_dir())[::32][:30]:
        shutil.copytree(source, folder / "images" / f"{source.parent.name}-{source.name}")
    small = ["--model.method.init_args.backbone.init_args.filters", 16, "--data.meta_batch_size", 4]
    assert the_whole_road(folder, 100, *small) > 0.4
