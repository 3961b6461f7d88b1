"""The wheel works outside of the repository: it brings the experiments, and trains one by its name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def execute(words: list[object], folder: Path, **environment: str) -> str:
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=known | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{words} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git would have: no leftovers of other builds, and none left here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("mamllit", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("dist")
    execute([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source], out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_the_experiments_the_checkpoints_and_no_script(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.yaml")}
    assert {f"mamllit/{file}" for file in files} == {name for name in names if name.startswith("mamllit/experiments/")}
    assert "mamllit/checkpoints/maml_omniglot_5way_1shot.safetensors" in names
    assert "mamllit/py.typed" in names
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"mamllit"}


def test_an_installed_wheel_trains_an_experiment_by_its_name(wheel: Path, tmp_path: Path) -> None:
    """In a folder of its own ahead of the path: mamllit comes from there, the libraries from this environment."""
    installed, folder = tmp_path / "installed", tmp_path / "elsewhere"
    folder.mkdir()
    execute([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], folder)
    here = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    where = execute([sys.executable, "-c", "import mamllit; print(mamllit.__file__)"], folder, **here)
    assert Path(where.strip()).is_relative_to(installed)
    mamllit = [sys.executable, "-m", "mamllit.cli"]
    assert "maml/sine_10shot " in execute([*mamllit, "experiments"], folder, **here)
    cheap = ["--trainer.max_steps", 3, "--data.val_episodes", 2, "--data.test_episodes", 4, "--wandb", "disabled"]
    printed = execute([*mamllit, "fit", "-c", "sine_10shot", *cheap], folder, **here)
    assert "results: runs/maml/sine_10shot/seed_0/result.json" in printed
    assert (folder / "runs/maml/sine_10shot/seed_0/config.yaml").is_file()
