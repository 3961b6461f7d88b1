"""README.md: every command in it is accounted for, and runs in a cheap form; its Python runs as it stands.

Executed, with fewer steps and episodes, in README's order and in one folder, so that `mamllit test` finds what
`mamllit fit` left: mamllit on sine and on a folder of toy images, `wandb sync` (a dry run), `wandb leet`, and, where
MAMLLIT_OMNIGLOT is set, mamllit on Omniglot.
Only checked, because they need a network, mini-ImageNet, an account, a cluster or minutes: a command with `--wandb online` or
`--data.download` and one under `srun` (its configuration is resolved against the real signatures), `make` (the target
exists and would run), `conda env create` (the file exists).
Not checked: fetching the repository and entering an environment (NOT_EXECUTED).
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHEAP = ["--model.compile", "false", "--data.val_episodes", "2", "--data.test_episodes", "4", "--wandb", "offline"]
STEPS = 3  # meta-updates of a fit; each resumed fit goes on for as many
NOT_EXECUTED = ("git clone ", "cd ", "source .venv/bin/activate", "conda activate ")
PARSED = ("--wandb online", "--data.download", "srun ", "mini_imagenet")  # a command with one of these is parsed, not executed


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.strip() for block in blocks("bash") for line in block.splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


def category(command: str) -> str:
    """What is done with a command; "unknown" fails the test."""
    words = shlex.split(command)
    if command.startswith(NOT_EXECUTED):
        return "not executed"
    if words[0] == "make" and len(words) == 2:
        return "make"
    if words[:3] == ["conda", "env", "create"]:
        return "conda"
    if words[:2] == ["wandb", "sync"]:
        return "sync"
    if words[:3] == ["wandb", "leet", "inspect"]:
        return "leet"
    if words[0] == "mamllit" or words[:2] == ["srun", "mamllit"]:
        if any(part in command for part in PARSED):
            return "parsed"
        if words[1] in ("export", "adapt") or "own_images" in command:
            return "own images"
        return "omniglot" if "omniglot" in command else "sine"
    return "unknown"


def of(*categories: str) -> list[str]:
    return [command for command in commands() if category(command) in categories]


def execute(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def mamllit(command: str, folder: Path, *more: str) -> str:
    words = shlex.split(command)
    return execute([sys.executable, "-m", "mamllit.cli", *words[words.index("mamllit") + 1 :], *more], folder)


def cheap(command: str, fits: int) -> list[str]:
    """What makes a command cheap; later options win over those of the README."""
    if "--help" in command:
        return []
    steps = ["--trainer.max_steps", str(STEPS * (fits + 1))] if " fit " in command else []
    wandb = CHEAP if "--wandb" not in command else CHEAP[:-2]
    return [*wandb, *steps]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def test_every_command_is_in_a_category() -> None:
    assert len(commands()) >= 15
    unknown = of("unknown")
    assert not unknown, f"say in this test how these commands of README.md are checked: {unknown}"
    for kind in ("sine", "omniglot", "parsed", "sync", "leet", "make", "own images"):
        assert of(kind), f"README.md has no command left of the category {kind}"


def test_the_commands_for_own_images_run_in_order(folder: Path) -> None:
    random = np.random.default_rng(0)
    places = [
        *(f"data/own_images/class{i}" for i in range(30)),
        *(f"new/{p}/kind{i}" for p in ("support", "query") for i in range(5)),
    ]
    for place in places:
        (folder / place).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(random.integers(0, 256, (30, 30), np.uint8)).save(folder / place / f"{i}.png")
    for command in of("own images"):
        options = [*cheap(command, 0), "--data.standard_queries", "2"] if " fit " in command else []
        mamllit(command, folder, *options)
    assert (folder / "adapted/predictions.csv").exists()
    assert (folder / "adapted/contact_sheet.png").exists()


def test_a_strange_command_is_unknown() -> None:
    for command in ("rm -rf runs", "pip install mamllit", "echo mamllit fit", "make demo DEMO_ARGS=x"):
        assert category(command) == "unknown"


def test_there_are_no_commands_outside_bash_blocks() -> None:
    assert set(re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)) == {"", "bash", "python"}
    assert len(re.findall(r"^```", README, flags=re.MULTILINE)) == 2 * len(blocks("bash") + blocks("python"))


def test_the_commands_run_in_order(folder: Path) -> None:
    fits = 0
    for command in of("sine", "sync", "leet"):
        if category(command) == "leet":
            printed = execute([sys.executable, "-m", *shlex.split(command)], folder)
            assert "finished (exit code 0)" in printed
            continue
        if category(command) == "sync":
            runs = [path for word in shlex.split(command)[2:] for path in glob.glob(str(folder / word))]
            assert runs, f"nothing to sync: {command}"
            execute([sys.executable, "-m", "wandb", "sync", "--dry-run", *runs], folder)
            continue
        output = mamllit(command, folder, *cheap(command, fits))
        fits += " fit " in command
        if " validate " not in command and "--help" not in command:
            assert "results: runs/" in output
    first = folder / "runs/demo/seed_0"
    described = README.split("    runs/demo/seed_0/\n", 1)[1].split("\n\n", 1)[0]
    for name in re.findall(r"^ {8}(\S+)", described, flags=re.MULTILINE):
        assert (first / name).exists(), f"README.md says that a run has {name}"
    assert (first / "figures/learning_curve.png").exists()
    assert (first / "figures/adaptation_10shot.png").exists()
    assert (first / "checkpoints/last.ckpt").exists()


@pytest.mark.real_data
def test_the_omniglot_commands_run(folder: Path) -> None:
    if not (images := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    (folder / "data/omniglot").mkdir(parents=True)
    for path in Path(images).expanduser().resolve().glob("images_*"):
        (folder / "data/omniglot" / path.name).symlink_to(path)
    for command in of("omniglot"):
        assert "results: runs/" in mamllit(command, folder, *cheap(command, 0))


@pytest.mark.parametrize("command", of("parsed"))
def test_the_options_of_commands_that_cannot_run_here_are_right(command: str, folder: Path) -> None:
    resolved = mamllit(command, folder, "--print_config")
    assert "max_steps:" in resolved


@pytest.mark.parametrize("command", of("make"))
def test_make_has_the_target(command: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    assert " ## " in (line := _rule(command.split()[1])), f"no description, so `make help` leaves it out: {line}"
    assert execute(["make", "-n", "-C", str(ROOT), command.split()[1]], tmp_path)


def _rule(target: str) -> str:
    return next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(f"{target}:"))


@pytest.mark.parametrize("command", of("conda"))
def test_the_conda_file_exists(command: str) -> None:
    assert (ROOT / shlex.split(command)[-1]).is_file()


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    assert "tensor(" in execute([sys.executable, "example.py"], tmp_path)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    paths = re.findall(r"`((?:mamllit|tests|experiments)/[\w./]+)`", README)
    missing = [target for target in [*targets, *paths] if not (ROOT / target).exists()]
    assert not missing, f"README.md points to files that do not exist: {missing}"
