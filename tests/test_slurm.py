"""A real Slurm on this machine: two tasks, pre-empted, queued again, finished, with the bits of a run that was left alone.

pytest -m slurm tests/test_slurm.py -s        (as root on Debian; installs slurm-wlm and munge where they are missing)
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mamllit.runs.wandb_file import contents

REPOSITORY = Path(__file__).parents[1]
CLUSTER = REPOSITORY / "experiments" / "slurm" / "local_cluster.sh"
SCRIPTS = sorted((REPOSITORY / "experiments" / "slurm").iterdir())
STEPS = 600
RUN = [
    "-c", "experiments/maml/sine_10shot.yaml", "-c", "experiments/hardware/cpu.yaml", "-c", "tests/small.yaml",
    "--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "200", "--checkpoint_last.every_n_train_steps", "100",
    "--test_after_fit", "false", "--wandb", "offline",
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(("task", "expected"), [("0", "a.yaml --seed_everything 3"), ("3", "b.yaml --seed_everything 4")])
def test_the_array_job_takes_cells_times_seeds(task: str, expected: str, tmp_path: Path) -> None:
    assert expected in array_job(task, tmp_path)


def test_a_task_beyond_the_table_says_so(tmp_path: Path) -> None:
    assert "task 4: there are 2 cells x 2 seeds, tasks 0 to 3; nothing to do" in array_job("4", tmp_path)


def array_job(task: str, folder: Path) -> str:
    """What task `task` of table.sbatch prints where train.sbatch only says its arguments."""
    for name in ("a.yaml", "b.yaml"):
        (folder / name).touch()
    (folder / "experiments" / "slurm").mkdir(parents=True)
    (folder / "experiments" / "slurm" / "train.sbatch").write_text('echo "$@"')
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": task, "CELLS": "*.yaml", "SEEDS": "3 4"}
    words = ["bash", str(REPOSITORY / "experiments" / "slurm" / "table.sbatch")]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running cluster, in which `mamllit` is this repository's."""
    if os.geteuid() or shutil.which("apt-get") is None:
        pytest.skip("needs root on a Debian machine: it installs and starts Slurm")
    folder = tmp_path_factory.mktemp("slurm")
    command = folder / "mamllit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore -m mamllit.cli "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "SLURM_LOCAL": str(folder), "SLURM_CONF": str(folder / "slurm.conf"), "MAMLLIT": str(command),
        "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if shutil.which("slurmctld") is None:
        subprocess.run([str(CLUSTER), "install"], check=True, env=environment)
    subprocess.run([str(CLUSTER), "start"], check=True, env=environment)
    yield environment
    subprocess.run([str(CLUSTER), "stop"], check=True, env=environment)


def call(environment: dict[str, str], *words: str) -> str:
    print("$", *words, flush=True)
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="", flush=True)
    return done.stdout.strip()


def submit(environment: dict[str, str], root: Path) -> str:
    """Submit the run with two tasks to the partition that is pre-empted; the job's number."""
    options = [
        "--parsable",
        "--partition",
        "spare",
        "--ntasks-per-node",
        "2",
        "--cpus-per-task",
        "2",
        "--output",
        f"{root}.log",
    ]
    script = "experiments/slurm/train.sbatch"
    return call(environment, "sbatch", *options, script, *RUN, "--trainer.default_root_dir", str(root))


def submit_urgent(environment: dict[str, str]) -> None:
    """A job that needs the whole node for three seconds, and pre-empts."""
    size = ["--partition", "urgent", "--ntasks", "1", "--cpus-per-task", "4"]
    call(environment, "sbatch", *size, "-o", "/dev/null", "--wrap", "sleep 3")


def until(condition, what: str, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def state(environment: dict[str, str], job: str) -> str:
    words = ["scontrol", "show", "job", job]
    text = subprocess.run(words, env=environment, capture_output=True, text=True).stdout
    return text.split("JobState=", 1)[1].split()[0] if "JobState=" in text else "GONE"


def same_tracked_run(run: Path, saved: int) -> None:
    """Both starts of the job are one W&B run, which goes on where the checkpoint was; the second process logs nothing."""
    first, second = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    logged = contents(second)
    print(f"W&B files of the two starts: {first.name} and {second.name}")
    assert first.name == second.name == f"run-{logged.run.run_id}.wandb"
    assert logged.run.run_id == (run / "wandb_run_id").read_text()
    steps = [row["trainer/global_step"] for row in logged.history if "train/meta_loss" in row]
    assert steps and all(step >= saved for step in steps)
    with (run / "csv/version_0/metrics.csv").open() as file:  # Slurm's signal ends W&B's process, which may not have written it
        before = [int(row["step"]) for row in csv.DictReader(file) if row["train/meta_loss"]]
    assert before == list(range(4, saved, 5))


@pytest.mark.slurm
def test_a_preempted_job_comes_back_and_ends_with_the_same_bits(slurm: dict[str, str], tmp_path: Path) -> None:
    preempted = submit(slurm, tmp_path / "preempted")
    checkpoints = tmp_path / "preempted" / "seed_0" / "checkpoints"
    until((checkpoints / "last.ckpt").exists, "the first checkpoint")
    submit_urgent(slurm)
    until(lambda: state(slurm, preempted) in ("PENDING", "REQUEUED"), "pre-empted and queued again")
    saved = torch.load(checkpoints / "last.ckpt", weights_only=False)["global_step"]
    print(f"checkpoint of step {saved}")
    assert 0 < saved < STEPS
    call(slurm, "squeue")
    until(lambda: state(slurm, preempted) in ("COMPLETED", "FAILED", "CANCELLED", "GONE"), "the end")
    print((tmp_path / "preempted.log").read_text())
    assert state(slurm, preempted) == "COMPLETED"
    same_tracked_run(tmp_path / "preempted" / "seed_0", saved)
    whole = submit(slurm, tmp_path / "whole")
    until(lambda: state(slurm, whole) in ("COMPLETED", "FAILED", "CANCELLED", "GONE"), "the end")
    assert state(slurm, whole) == "COMPLETED", (tmp_path / "whole.log").read_text()
    one, other = (torch.load(tmp_path / n / "seed_0/checkpoints/last.ckpt", weights_only=False) for n in ("preempted", "whole"))
    assert one["global_step"] == other["global_step"] == STEPS
    for name, value in other["state_dict"].items():
        assert torch.equal(one["state_dict"][name], value), name
    assert [path.name for path in (tmp_path / "preempted").iterdir()] == ["seed_0"]


@pytest.mark.slurm
def test_the_array_job_of_a_table_goes_on_after_a_preemption(slurm: dict[str, str], tmp_path: Path) -> None:
    """Two cells x two seeds and a task too many, two at once; the first two are pre-empted."""
    for table in ("maml", "anil"):
        text = (REPOSITORY / f"experiments/{table}/sine_10shot.yaml").read_text()
        (tmp_path / f"{table}.yaml").write_text(text.replace("default_root_dir: runs/", f"default_root_dir: {tmp_path}/runs/"))
    environment = slurm | {"CELLS": f"{tmp_path}/*.yaml", "SEEDS": "0 1"}
    options = ["--parsable", "--partition", "spare", "--cpus-per-task", "2", "--output", f"{tmp_path}/task_%a.log"]
    script = "experiments/slurm/table.sbatch"
    job = call(environment, "sbatch", "--array", "0-4%2", *options, script, *RUN[2:])
    started = [tmp_path / "runs/anil/sine_10shot" / f"seed_{seed}/checkpoints/last.ckpt" for seed in (0, 1)]
    until(lambda: all(path.exists() for path in started), "the first checkpoints of the first two tasks")
    submit_urgent(slurm)
    until(lambda: ended(slurm, job), "the end", 1800)
    logs = [(tmp_path / f"task_{task}.log").read_text() for task in range(5)]
    for task, log in enumerate(logs[:4]):
        cell, seed = ("anil", "maml")[task // 2], task % 2
        result = json.loads((tmp_path / f"runs/{cell}/sine_10shot/seed_{seed}/result.json").read_text())
        assert (result["seed"], result["steps_done"]) == (seed, STEPS), log
        print("\n".join(line for line in log.splitlines() if line.startswith(("job ", "stopped by"))))
        assert ("start 2: mamllit fit" in log) == (task < 2), log
    assert "task 4: there are 2 cells x 2 seeds, tasks 0 to 3; nothing to do" in logs[4]


def ended(environment: dict[str, str], job: str) -> bool:
    """Whether no task of the array waits or runs."""
    words = ["squeue", "--noheader", "--array", "--jobs", job, "--format", "%T"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    return done.returncode != 0 or not done.stdout.split()  # Slurm forgets jobs that ended some minutes ago
