"""Which directory a run gets, who shares it, and which run `last`, `test` and `validate` mean."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_runs import QUIET, command, contents, result, short

from mamllit import cli
from mamllit.cli import run_directory, start
from mamllit.cli.run_directory import RunDirectory, check_name, is_first_process, make, newest, take, take_or_make, versions
from mamllit.runs import tracking

pytestmark = QUIET


def with_checkpoint(run: Path, name: str = "last", step: int = 10) -> Path:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step}, run / "checkpoints" / f"{name}.ckpt")
    return run


# ---- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", "../elsewhere", "a/../../b", "/tmp/a", "a//b", "a/", ".", ""])
def test_a_name_stays_below_the_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it must stay below default_root_dir: no '\.\.', '\.' or empty parts"):
        make(tmp_path / "root", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".hidden", "~me", " a", "a ", "a\nb", "a\\b", "a/.b"])
def test_a_name_is_one_that_everybody_can_read(name: str) -> None:
    with pytest.raises(ValueError, match=r"no part of it may begin with '\.' or '~', begin or end with a space, or have a"):
        check_name(name)


def test_a_fit_cannot_ask_for_a_version(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run_name is 'a_v2'; mamllit appends _v2 to later runs of the same name: use 'a"):
        make(tmp_path, "a_v2")


@pytest.mark.parametrize("name", ["sweep/a", "sweep/deep/a", "a[1]", "[ab]*", "a*", "a?", "a_v1", "a_vb", "ä", "a b"])
def test_the_same_name_again_takes_the_next_version(name: str, tmp_path: Path) -> None:
    (tmp_path / "decoy_v7").mkdir()
    runs = []
    for _ in range(3):
        with make(tmp_path, name) as held:
            runs.append(with_checkpoint(held.path))
    assert runs == [tmp_path / name, tmp_path / f"{name}_v2", tmp_path / f"{name}_v3"]
    assert versions(tmp_path, name) == dict(enumerate(runs, 1))
    assert newest(tmp_path, name) == runs[2]
    assert newest(tmp_path, f"{name}_v2") == runs[1]  # looked for, it means this one alone
    assert newest(tmp_path, f"{name}_v20") is None


def test_similar_names_are_others(tmp_path: Path) -> None:
    for name in ("seed_0", "seed_0_v2", "seed_00", "seed_0_v2_old", "seed_0_v02", "seed_0_v1", "seed_0_v٣"):
        with_checkpoint(tmp_path / name)
    assert versions(tmp_path, "seed_0") == {1: tmp_path / "seed_0", 2: tmp_path / "seed_0_v2"}
    assert make(tmp_path, "seed_0").path == tmp_path / "seed_0_v3"


# ---- made for one fit ----------------------------------------------------------------------------------------------------


def make_with_others(root: Path, barrier: Any) -> str:
    barrier.wait(60)
    return str(make(root, "sweep/seed_0").path)


def test_fits_that_begin_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.Manager() as manager, ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        barrier = manager.Barrier(4)
        got = [future.result(90) for future in [pool.submit(make_with_others, tmp_path, barrier) for _ in range(4)]]
    assert sorted(got) == sorted(str(tmp_path / f"sweep/seed_0{version}") for version in ("", "_v2", "_v3", "_v4"))


def test_a_link_or_a_file_with_the_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    (tmp_path / "a_v2").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a_v3").touch()
    assert make(tmp_path, "a").path == tmp_path / "a_v4"
    assert list((tmp_path / "theirs").iterdir()) == [] and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("begun", "left"), [(False, []), (True, ["a"])])
def test_an_error_before_the_first_step_takes_the_new_directory_away(begun: bool, left: list[str], tmp_path: Path) -> None:
    held = make(tmp_path / "root", "deep/a")
    held.begun = lambda: begun
    (held.path / "wandb").mkdir()
    with pytest.raises(KeyError), held:
        raise KeyError
    found = [path.name for path in (tmp_path / "root" / "deep").iterdir()] if (tmp_path / "root").exists() else []
    assert found == left
    assert (tmp_path / "root").exists() == begun  # what was made for it goes, too


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "a")
    held = take(tmp_path / "a")
    with pytest.raises(KeyError), held:
        raise KeyError
    assert newest(tmp_path, "a") == tmp_path / "a"
    new = make(tmp_path / "a", "inside")  # its parent is another's
    with pytest.raises(KeyError), new:
        raise KeyError
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["checkpoints"]


def in_another_process(function: Callable[..., RunDirectory], *words: Path | str) -> str:
    """The directory that another process gets, which then ends without giving it back; or why it gets none."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        try:
            text = str(function(*words).path)
        except OSError as error:
            text = str(error)
        os.write(writing, text.encode())
        os._exit(1)
    os.waitpid(process, 0)
    os.close(writing)
    with open(reading) as file:
        return file.read()


def test_a_run_under_way_is_nobody_elses(tmp_path: Path) -> None:
    held = make(tmp_path, "a")
    refused = f"another process is training in {held.path}: wait for it or stop it; without --ckpt_path, `fit` starts a new run"
    assert in_another_process(take, held.path).startswith(refused)
    assert in_another_process(take_or_make, tmp_path, "a") == str(tmp_path / "a_v2")
    held.__exit__(None, None, None)
    assert list(held.path.iterdir()) == []
    assert in_another_process(take, held.path) == str(held.path)  # its end gave it back


def test_a_job_that_was_killed_before_its_first_checkpoint_takes_its_directory_again(tmp_path: Path) -> None:
    assert in_another_process(make, tmp_path, "a") == str(tmp_path / "a")
    (tmp_path / "a" / f".last.ckpt.{'0' * 16}.part").touch()
    with take_or_make(tmp_path, "a") as held:
        assert held.path == tmp_path / "a"
        assert [path.name for path in held.path.iterdir()] == [run_directory.LOCK]  # what was half-written is gone
    with take_or_make(tmp_path, "b") as held:
        assert held.path == tmp_path / "b"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, False),
    ],
)
def test_one_process_of_a_run_is_the_first(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_other_processes_make_nothing(tmp_path: Path) -> None:
    assert start.of_fit(tmp_path / "root", "a", None, 10, False, first=False).checkpoint is None
    assert not (tmp_path / "root").exists()
    with_checkpoint(tmp_path / "a")
    (tmp_path / "a_v2").mkdir()
    every = [start.of_fit(tmp_path, "a", "last", 20, False, first) for first in (False, True)]
    assert {found.checkpoint for found in every} == {str(tmp_path / "a" / "checkpoints" / "last.ckpt")}


# ---- what it begins with -------------------------------------------------------------------------------------------------


def test_last_and_test_pass_over_runs_without_a_checkpoint(tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "a_v2")
    with_checkpoint(tmp_path / "a_v2", "best")
    for name in ("a", "a_v3", "a_v4/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    file = str(tmp_path / "a_v2" / "checkpoints" / "last.ckpt")
    assert start.of_fit(tmp_path, "a", "last", 20, False, True)[:2] == (tmp_path / "a_v2", file)
    assert start.of_evaluation(tmp_path, "a", None) == (tmp_path / "a_v2", file, None)
    best = file.removesuffix("last.ckpt") + "best.ckpt"
    assert start.of_fit(tmp_path, "a", "best", 20, False, True)[:2] == (tmp_path / "a_v2", best)
    assert start.of_evaluation(tmp_path, "a", "best")[:2] == (tmp_path / "a_v2", best)


@pytest.mark.parametrize("asked", ["last", "best"])
def test_nothing_to_go_on_from_is_an_error(asked: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"^no run {tmp_path}/a has a checkpoint to resume from: leave --ckpt_path out to"
    ):
        start.of_fit(tmp_path, "a", asked, 20, False, True)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("how", ["setting", "requeued"])
def test_a_job_may_be_its_own_first_start(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "requeued":
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = start.of_fit(tmp_path, "a", "last", 20, how == "setting", True)
    assert found[:2] == (tmp_path / "a", None) and found.held is not None
    with pytest.raises(FileNotFoundError, match=r"no run .*/a has a checkpoint to resume from"):
        start.of_fit(tmp_path, "a", "best", 20, how == "setting", True)


def test_last_where_every_checkpoint_is_damaged_is_an_error(tmp_path: Path) -> None:
    (with_checkpoint(tmp_path / "a") / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="there is no other"), pytest.raises(FileNotFoundError, match="can be read: leave"):
        start.of_fit(tmp_path, "a", "last", 20, False, True)


def test_a_file_of_the_run_goes_on_in_it_and_another_begins_a_run(tmp_path: Path) -> None:
    for name in ("a", "a_v2", "b"):
        with_checkpoint(tmp_path / name)
    own, other = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("a", "b"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert start.of_fit(tmp_path, "a", str(own), 20, False, True).run == tmp_path / "a"
    assert start.of_fit(tmp_path / "link", "a", str(own), 20, False, True).run == tmp_path / "link" / "a"
    assert start.of_fit(tmp_path, "a", str(other), 20, False, True)[:2] == (tmp_path / "a_v3", str(other))
    assert start.of_evaluation(tmp_path, "a", str(own)).run == tmp_path / "a"
    with pytest.raises(
        ValueError, match=rf"{other} is not a checkpoint of {tmp_path}/a_v2, whose result it would replace: name the"
    ):
        start.of_evaluation(tmp_path, "a", str(other))
    assert start.of_evaluation(tmp_path, "c", str(other)).run == tmp_path / "c"


ADDRESSES = ["http://host/a.ckpt", "https://host/a.ckpt", "s3://b/a.ckpt", "file:///a.ckpt", "simplecache::x", "registry:a"]


@pytest.mark.parametrize("asked", ADDRESSES)
def test_an_address_is_not_fetched(asked: str, tmp_path: Path) -> None:
    for call in (
        lambda: start.of_fit(tmp_path, "a", asked, 10, True, True),
        lambda: start.of_evaluation(tmp_path, "a", asked),
    ):
        with pytest.raises(ValueError, match=rf"ckpt_path is '{asked}'; checkpoints are not loaded from a URL: download"):
            call()


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a folder; name a file in it, such as .*/checkpoints/last\.ckpt"):
        start.local_file(str(tmp_path))


# ---- whole commands ------------------------------------------------------------------------------------------------------


def fails(*_: object, **__: object) -> None:
    raise ValueError("as a wrong root does")


@pytest.mark.slow
def test_a_fit_that_fails_leaves_the_good_run_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.run(short(tmp_path))
    before = contents(tmp_path / "seed_0")
    with monkeypatch.context() as patch:
        patch.setattr("mamllit.systems.MetaLearner.on_train_start", fails)
        with pytest.raises(ValueError, match="as a wrong root does"):
            cli.run(short(tmp_path))
    with pytest.raises(ValueError, match=r"[Ii]nvalid learning rate"):
        cli.run(short(tmp_path, "--model.optimizer.init_args.lr", "-1"))
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]
    assert contents(tmp_path / "seed_0") == before
    cli.run(command("test", tmp_path))
    assert result(tmp_path / "seed_0")["steps_done"] == 2
    assert cli.run(short(tmp_path, "--ckpt_path", "last", "--trainer.max_steps", "3")).trainer.global_step == 3


def test_a_fit_that_fails_after_a_step_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamllit.systems.MetaLearner.on_validation_epoch_start", fails)
    with pytest.raises(ValueError, match="as a wrong root does"):
        cli.run(short(tmp_path, "--trainer.val_check_interval", "1"))
    assert result(tmp_path / "seed_0")["steps_done"] == 1


def test_last_without_a_run_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a job that may be the first of its run passes --begin_if_none true"):
        cli.run(short(tmp_path / "root", "--ckpt_path", "last"))
    assert not (tmp_path / "root").exists()
    begun = cli.run(short(tmp_path / "root", "--ckpt_path", "last", "--begin_if_none", "true"))
    assert begun.trainer.global_step == 2


def test_a_try_leaves_no_run(fitted: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = cli.run(command("fit", tmp_path / "root", "--trainer.fast_dev_run", "true"))
    assert done.trainer.global_step == 1
    assert not Path(done.trainer.default_root_dir).exists()
    assert not (tmp_path / "root").exists()
    assert "fast_dev_run: one batch of each kind, nothing is saved" in capsys.readouterr().out
    before = contents(fitted.run)
    cli.run(command("test", fitted.root, "--trainer.fast_dev_run", "true"))  # of one batch: no result of the run
    assert [path.name for path in fitted.root.iterdir()] == ["seed_0"]
    assert contents(fitted.run) == before


def test_every_run_has_an_id_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    runs = [make(tmp_path, "a").path for _ in range(4)]
    ids = [tracking.run_id(run) for run in runs]
    assert len(set(ids)) == 4
    assert [tracking.run_id(run) for run in runs] == ids  # which a resumed run, or its test, finds again


def test_a_checkpoint_of_another_run_does_not_replace_a_result(fitted: SimpleNamespace, tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "seed_0")
    foreign = str(fitted.run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="whose result it would replace: name the evaluation with --run_name"):
        cli.run(command("test", tmp_path, "--ckpt_path", foreign))
    cli.run(command("test", tmp_path, "--ckpt_path", foreign, "--run_name", "theirs"))
    assert result(tmp_path / "theirs")["steps_done"] == 22
    assert list(contents(tmp_path / "seed_0")) == ["checkpoints/last.ckpt"]
