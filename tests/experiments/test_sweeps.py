"""The sweeps: every corner of a grid parses; and `wandb sweep` and `wandb agent` run one, against a stand-in for the server."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_server import ENTITY, PROJECT, SWEEP, Server

from mamllit.cli import program
from mamllit.runs.wandb_file import contents

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "experiments/sweeps").glob("*.yaml"))
each_sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)


def read(path: Path) -> tuple[dict, list[str]]:
    """The sweep, and the command's words between `fit` and the sweep's own arguments."""
    sweep = yaml.safe_load(path.read_text())
    command = sweep["command"]
    assert command[:4] == ["${env}", "${interpreter}", "-m", "mamllit.cli"]
    assert command[4:6] == ["fit", "-c"]
    assert command[-1] == "${args}"
    return sweep, command[5:-1]


def test_there_are_sweeps() -> None:
    assert "sine_inner_loop.yaml" in [path.name for path in SWEEPS]


@each_sweep
@pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*")
def test_every_corner_of_the_grid_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["mamllit"])
    sweep, words = read(path)
    names, values = zip(*((name, spec["values"]) for name, spec in sweep["parameters"].items()), strict=True)
    cli = program.read(more=words)
    for corner in itertools.product(*((own[0], own[-1]) for own in values)):
        arguments = [*words, *(f"--{name}={value}" for name, value in zip(names, corner, strict=True))]
        config = cli.parser.parse_args(arguments)
        for name, value in zip(names, corner, strict=True):
            assert config[name.replace("model.", "model.init_args.", 1)] == value
        assert sweep["metric"]["name"] == config.checkpoint_best.monitor


@each_sweep
def test_it_names_its_base_and_where_its_runs_land(path: Path) -> None:
    sweep, words = read(path)
    assert f"# Base: {words[1]}\n" in path.read_text()
    assert (ROOT / words[1]).is_file()
    assert sweep["name"] == path.stem
    assert f"--trainer.default_root_dir=runs/sweeps/{path.stem}" in words


@pytest.mark.slow
def test_wandb_agent_runs_a_sweep_against_a_stand_in(tmp_path: Path) -> None:
    """The first two runs of the sine grid, small and offline, by the real `wandb sweep` and `wandb agent`."""
    text = (ROOT / "experiments/sweeps/sine_inner_loop.yaml").read_text()
    text = text.replace("- experiments/", f"- {ROOT}/experiments/").replace("--wandb=online", "--wandb=offline")
    small = (
        f"  - -c\n  - {ROOT}/tests/small.yaml\n  - --wandb=offline\n"  # after which small.yaml's own "disabled" does not count
    )
    (tmp_path / "sweep.yaml").write_text(text.replace("  - ${args}", small + "  - ${args}"))
    private = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Server(most=2) as server:
        account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        for words in (["sweep", "--project", PROJECT, "sweep.yaml"], ["agent", f"{ENTITY}/{PROJECT}/{SWEEP}"]):
            done = subprocess.run(
                [sys.executable, "-m", "wandb", *words], cwd=tmp_path, env={**environment, **private, **account},
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        assert {"mutation UpsertSweep", "mutation CreateAgent", "mutation Heartbeat"} <= set(server.asked)
    for trial, steps in (("trial0", 1), ("trial1", 2)):
        run = tmp_path / "runs/sweeps/sine_inner_loop" / f"seed_0_{trial}"
        logged = contents(next(run.glob("wandb/offline-run-*/run-*.wandb")))
        assert (logged.run.run_id, logged.run.sweep_id) == (trial, SWEEP)
        chosen = logged.config["model"]["init_args"]["method"]["init_args"]
        assert (chosen["inner_lr"], chosen["inner_steps"]) == (0.003, steps)
        assert any("val/mse" in row for row in logged.history)
        changed = logged.config["experiment"]["changed"]
        assert changed["model.init_args.method.init_args.inner_lr"] == {"experiment": 0.01, "run": 0.003}
