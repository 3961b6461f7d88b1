"""README.md, CONTRIBUTING.md and docs/: every command is accounted for and runs in a cheap form, every Python example runs.

Commands stand in bash blocks. Those of mamllit are executed in this process, with fewer steps and episodes, in the order of
their page and in one folder, so that `mamllit test` finds what `mamllit fit` left. One round with real processes is slow,
and so is what needs images. Only checked: what needs a network, mini-ImageNet, an account, a cluster or minutes (its
configuration is resolved against the real signatures), `make` (the target exists and would run) and `conda` (its file exists).
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mamllit import cli

ROOT = Path(__file__).parent.parent
PLACES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "experiments/README.md", "experiments/benchmarks/README.md")
PAGES = {path: path.read_text(encoding="utf-8") for place in PLACES for path in sorted(ROOT.glob(place))}
LOG = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs/log").glob("*.md")}
README = PAGES[ROOT / "README.md"]
CHEAP = ["--model.compile", "false", "--data.val_episodes", "2", "--data.test_episodes", "4"]
STEPS = 3  # meta-updates of a fit; each resumed fit goes on for as many
NOT_EXECUTED = ("git clone ", "cd ", "source .venv/bin/activate", "conda activate ", 'pip install -e ".[bench]"')
ELSEWHERE = {  # commands that other tests run, or that need a cluster, an account or a screen
    "wandb sweep": "tests/experiments/test_sweeps.py",
    "wandb agent": "tests/experiments/test_sweeps.py",
    "wandb leet runs": "docs/wandb.md",  # which says that it was not tried
    "torchrun": "tests/test_layouts.py",
    "sbatch": "tests/test_slurm.py",
    "CELLS=": "tests/test_slurm.py",
    "python experiments/learn2learn/metacurvature_taskset.py": "tests/bridges/learn2learn/test_example.py",
    "python experiments/reproduce.py": "tests/experiments/test_reproduce.py",
    "python experiments/compare.py": "tests/experiments/test_comparison.py",
    "python experiments/own_sets.py": "tests/experiments/test_own_sets.py",
    "python experiments/tables.py": "tests/experiments/test_tables.py",
    "mamllit results add": "tests/cli/test_experiments.py",
    "python experiments/benchmarks/run.py": "tests/benchmarks/test_suite.py",
    "python experiments/benchmarks/methods.py": "tests/benchmarks/test_costs.py",
    "python experiments/benchmarks/embedding.py": "tests/benchmarks/test_embedding.py",
    "python experiments/benchmarks/acting.py": "tests/benchmarks/test_acting.py",
    "python experiments/benchmarks/plain_loops.py": "tests/benchmarks/test_plain_loops.py",
    "python experiments/benchmarks/metric_loops.py": "tests/benchmarks/test_metric_loops.py",
    "experiments/benchmarks/gpu.sh": "docs/speed.md",  # which says that GPUs were not measured
}
# a command with one of these is parsed, not executed
PARSED = ("--wandb online", "--data.download", "srun ", "mini_imagenet", "own_photos")
QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]
pytestmark = QUIET


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


EVERY = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))


def category(command: str) -> str:
    """What is done with a command; "unknown" fails the test."""
    words = shlex.split(command)
    if command.startswith(NOT_EXECUTED):
        return "not executed"
    if command.startswith(tuple(ELSEWHERE)):
        return "elsewhere"
    if words[0] == "make" and len(words) == 2:
        return "make"
    if words[:3] == ["conda", "env", "create"]:
        return "conda"
    if words[:2] == ["wandb", "sync"] or words[:3] == ["wandb", "leet", "inspect"]:
        return "wandb"
    if words[0] == "mamllit" or words[:2] == ["srun", "mamllit"]:
        if any(part in command for part in PARSED):
            return "parsed"
        if words[1] in ("--help", "experiments"):
            return "listing"
        if words[1] in ("export", "adapt", "predict") or "own_images" in command:
            return "own images"
        if "omniglot" in command:
            return "omniglot"
        if "rl" in re.split(r"[/_.\s]", command):
            return "acting"
        return "processes" if "ddp" in command else "sine"
    return "unknown"


def of(*categories: str) -> list[str]:
    return [command for command in EVERY if category(command) in categories]


def cheap(command: str, fits: int) -> list[str]:
    """What makes a command cheap; later options win over those of the page."""
    if "--help" in command or not re.search(r" (fit|validate|test) ", command):
        return []
    steps = ["--trainer.max_steps", str(STEPS * (fits + 1))] if " fit " in command else []
    return [*CHEAP, *steps, *([] if "--wandb" in command else ["--wandb", "disabled"])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("results", "__pycache__"))
    return tmp_path


Run = Callable[..., str]


@pytest.fixture
def mamllit(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command of mamllit in this process and in `folder`; returns what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards

    def run(command: str, *more: str) -> str:
        words, threads = shlex.split(command), torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", ["mamllit", *words[words.index("mamllit") + 1 :], *more])
        try:
            cli.main()
        except SystemExit as stopped:
            if stopped.code:
                pytest.fail(f"{command} failed: {stopped.code}\n{capsys.readouterr().err[-2000:]}")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def execute(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# ---- commands --------------------------------------------------------------------------------------------------------


def test_every_command_is_in_a_category() -> None:
    unknown = of("unknown")
    assert not unknown, f"say in this test how these commands are checked: {unknown}"
    for kind in ("sine", "omniglot", "parsed", "wandb", "make", "own images", "listing", "processes", "acting"):
        assert of(kind), f"no page has a command left of the category {kind}"
    missing = [place for place in ELSEWHERE.values() if not (ROOT / place).exists()]
    assert not missing, f"what runs a command elsewhere is gone: {missing}"
    for command in ("rm -rf runs", "pip install mamllit", "echo mamllit fit", "make demo DEMO_ARGS=x"):
        assert category(command) == "unknown"


def test_commands_stand_in_bash_blocks() -> None:
    for path, text in PAGES.items():
        languages = re.findall(r"^ *```(.*)$", text, flags=re.MULTILINE)
        kinds = {language.split(" ", 1)[0] for language in languages}
        assert kinds <= {"", "bash", "python", "text", "{toctree}", "{eval-rst}", "{include}", "{literalinclude}"}, path.name
        assert languages.count("") * 2 == len(languages), f"{path.name}: a block is not closed, or has no language"


@pytest.mark.slow
def test_the_sine_commands_run_in_order(mamllit: Run, folder: Path) -> None:
    fits = 0
    for command in of("sine"):
        output = mamllit(command, *cheap(command, fits))
        fits += " fit " in command
        if " validate " not in command and "--help" not in command:
            assert "results: runs/" in output, command
    first = folder / "runs/demo/seed_0"
    described = PAGES[ROOT / "docs/start.md"].split("runs/demo/seed_0/\n", 1)[1].split("```", 1)[0]
    names = [name for name in re.findall(r"^ {4}(\S+)", described, flags=re.MULTILINE) if name != "wandb/"]
    assert len(names) >= 6
    missing = [name for name in names if not (first / name).exists()]
    assert not missing, f"docs/start.md says that a run has {missing}"
    for name in ("figures/learning_curve.png", "figures/adaptation_10shot.png", "checkpoints/last.ckpt"):
        assert (first / name).exists()


def test_the_commands_of_reinforcement_learning_run_in_order(mamllit: Run) -> None:
    """The video too; what needs MuJoCo is only parsed, and skips without it."""
    small = {"shots": 2, "queries": 2, "meta_batch_size": 2, "val_episodes": 2, "test_shots": [2], "protocols": "[paper]"}
    tiny = [word for name, value in small.items() for word in (f"--data.{name}", str(value))]
    fit = [*tiny, "--trainer.max_steps", str(STEPS), "--wandb", "disabled"]
    for command in of("acting"):
        if "cheetah" in command or "ant_" in command:
            if find_spec("mujoco") is not None:
                assert "max_steps:" in mamllit(command, "--print_config"), command
        elif " rollout " in command:
            assert "video: " in mamllit(command), command
        else:
            assert "results: runs/" in mamllit(command, *fit), command


def test_the_listings_run(mamllit: Run, folder: Path) -> None:
    printed = {command: mamllit(command) for command in of("listing")}
    assert "maml/sine_10shot " in printed["mamllit experiments"]
    assert (folder / "my_experiment/maml/sine_10shot.yaml").is_file()


@pytest.mark.slow
def test_the_commands_for_own_images_run_in_order(mamllit: Run, folder: Path) -> None:
    random = np.random.default_rng(0)
    places = [
        *(f"data/own_images/class{i}" for i in range(30)),
        *(f"new/{part}/kind{i}" for part in ("support", "query") for i in range(5)),
    ]
    for place in places:
        (folder / place).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (30, 30), np.uint8)).save(folder / place / f"{i}.png")
    for command in of("own images"):
        mamllit(command, *cheap(command, 0), *(["--data.standard_queries", "2"] if " fit " in command else []))
    assert (folder / "adapted/predictions.csv").exists()
    assert (folder / "adapted/contact_sheet.png").exists()


def test_the_options_of_commands_that_cannot_run_here_are_right(mamllit: Run) -> None:
    for command in of("parsed"):
        assert "max_steps:" in mamllit(command, "--print_config"), command


@pytest.mark.slow
def test_real_processes_leave_what_the_pages_say(folder: Path) -> None:
    """`mamllit fit` with W&B offline, what W&B makes of it, and two processes."""
    program = [sys.executable, "-m", "mamllit.cli"]
    for command in ["mamllit fit -c experiments/demo.yaml", *of("processes")]:
        words = [*program, *shlex.split(command)[1:], *CHEAP, "--trainer.max_steps", "3", "--wandb", "offline"]
        assert "results: runs/" in execute(words, folder), command
    assert (folder / "runs/demo/seed_0/wandb").exists()
    for command in of("wandb"):
        if command.startswith("wandb sync"):
            runs = [path for word in shlex.split(command)[2:] for path in glob.glob(str(folder / word))]
            assert runs, f"nothing to sync: {command}"
            execute([sys.executable, "-m", "wandb", "sync", "--dry-run", *runs], folder)
        else:
            assert "finished (exit code 0)" in execute([sys.executable, "-m", *shlex.split(command)], folder)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_omniglot_commands_run(mamllit: Run, folder: Path) -> None:
    if not (images := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    (folder / "data/omniglot").mkdir(parents=True)
    for path in Path(images).expanduser().resolve().glob("images_*"):
        (folder / "data/omniglot" / path.name).symlink_to(path)
    for command in of("omniglot"):
        assert "results: runs/" in mamllit(command, *cheap(command, 0)), command


def test_make_has_the_targets(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    for target in (command.split()[1] for command in of("make")):
        line = next(line for line in lines if line.startswith(f"{target}:"))
        assert " ## " in line, f"no description, so `make help` leaves it out: {line}"
        assert execute(["make", "-n", "-C", str(ROOT), target], tmp_path)


def test_the_conda_file_exists() -> None:
    for command in of("conda"):
        assert (ROOT / shlex.split(command)[-1]).is_file()


# ---- Python, links, size ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if blocks("python", PAGES[path])], ids=lambda path: path.name)
def test_the_python_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks("python", PAGES[path]):
        names: dict[str, object] = {"__name__": "example"}
        exec(compile(code, path.name, "exec"), names)
        assert "print(" not in code or capsys.readouterr().out


def test_the_method_of_contributing_trains() -> None:
    """The example is a whole method: its meta-gradient is that of finite differences along itself."""
    from mamllit.backbones import MLP
    from mamllit.core.episode import Episode, Examples
    from mamllit.engine.meta_gradient import MetaGradient
    from mamllit.objectives import Regression

    names: dict[str, object] = {"__name__": "example"}
    exec(compile(blocks("python", PAGES[ROOT / "CONTRIBUTING.md"])[0], "CONTRIBUTING.md", "exec"), names)
    method = names["SignMAML"](MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=2).double()  # type: ignore[operator]
    x = torch.rand(3, 10, 1, dtype=torch.float64) * 10 - 5
    y = torch.sin(x)
    episodes = Episode(Examples(x[:, :5], y[:, :5]), Examples(x[:, 5:], y[:, 5:]))
    before = MetaGradient(method)(episodes)
    size, square = 1e-6, sum(float(value.square().sum()) for value in before.gradient.values())
    with torch.no_grad():
        for value, gradient in zip(method.parameters(), before.gradient.values(), strict=True):
            value -= size * gradient
    fallen = float(before.loss - MetaGradient(method)(episodes).loss)
    assert fallen == pytest.approx(size * square, rel=1e-2)


def test_links_lead_somewhere() -> None:
    missing = []
    for path, text in (PAGES | LOG).items():
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
            missing += [f"{path.name}: {target}"] if not (path.parent / target).exists() else []
        if path in PAGES:
            for target in re.findall(r"`((?:mamllit|tests|experiments)/[\w./]+)`", text):
                missing += [f"{path.name}: {target}"] if not (ROOT / target).exists() else []
    assert not missing, f"pages point to files that do not exist: {missing}"


def test_readme_can_be_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150
    words = "\n".join(line for line in README.splitlines() if not line.startswith("|"))  # its table grows with what is finished
    assert 3000 <= len(words.encode()) <= 5000


def test_readme_lists_every_method() -> None:
    files = {path.name for path in (ROOT / "mamllit/methods").glob("*.py")} - {"__init__.py", "base.py", "inner_loop_method.py"}
    assert set(re.findall(r"\(mamllit/methods/(\w+\.py)\)", README)) == files
