"""The command line, run in this process: what a run leaves behind, and how the next command finds it."""

import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_runs import QUIET, REPOSITORY, command, contents, result, rows, short
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from mamllit import cli
from mamllit.cli import program

pytestmark = QUIET


@pytest.fixture
def copied(fitted: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of `fitted` to write into."""
    shutil.copytree(fitted.root, tmp_path / "copy")
    return SimpleNamespace(root=tmp_path / "copy", run=tmp_path / "copy" / "seed_0")


# ---- what a fit leaves behind ----------------------------------------------------------------------------------------


def test_fit_writes_all_its_files_into_one_directory(fitted: SimpleNamespace) -> None:
    assert [path.name for path in fitted.root.iterdir()] == ["seed_0"]
    assert set(contents(fitted.run)) == {
        "config.yaml",
        "result.json",
        "episodes.csv",
        "csv/version_0/metrics.csv",
        "csv/version_0/hparams.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "checkpoints/best.ckpt",
        "checkpoints/step20.ckpt",
        "figures/learning_curve.png",
        "figures/adaptation_5shot.png",
    }


def test_result_json_says_what_was_measured(fitted: SimpleNamespace) -> None:
    written = result(fitted.run)
    assert written["method"] == "MAML"
    assert written["metric"] == "mse"
    assert written["steps_done"] == 22
    assert written["seed"] == 0
    assert written["transductive"] is False
    assert written["fit"]["steps_asked"] == written["fit"]["steps_this_session"] == 22
    assert written["versions"]["torch"] == torch.__version__
    assert set(written["results"]) == {"val", "paper[20]"}
    test = written["results"]["paper[20]"]
    assert {key: test[key] for key in ("protocol", "split", "shots", "queries", "episodes")} == {
        "protocol": "paper[20]",
        "split": "test",
        "shots": 5,
        "queries": 5,
        "episodes": 20,
    }
    for field in ("mean", "ci95", "median", "diverged"):
        assert len(test[field]) == 4, f"{field}: one value after each of 0 to 3 inner steps"
    assert test["diverged"] == [0.0] * 4


def test_result_json_names_the_best_checkpoint(fitted: SimpleNamespace) -> None:
    best = result(fitted.run)["best_checkpoint"]
    validated = {int(row["step"]) + 1: float(row["val/mse"]) for row in metrics(fitted.run, "val/mse")}
    step = min(validated, key=validated.__getitem__)
    assert best == {
        "path": "checkpoints/best.ckpt",
        "monitor": "val/mse",
        "score": pytest.approx(validated[step], rel=1e-6),
        "step": step,
    }


def metrics(run: Path, name: str) -> list[dict[str, str]]:
    return [row for row in rows(run / "csv" / "version_0" / "metrics.csv") if row[name]]


def test_metrics_csv_holds_each_value_once(fitted: SimpleNamespace) -> None:
    train = metrics(fitted.run, "train/mse")
    assert [int(row["step"]) for row in train] == [4, 9, 14, 19]  # log_every: 5
    assert len({row["train/mse"] for row in train}) == 4
    assert [int(row["step"]) for row in metrics(fitted.run, "val/mse")] == [9, 19]  # val_check_interval: 10
    assert len(metrics(fitted.run, "test/paper[20]/mse_step1_mean")) == 1


def test_episodes_csv_holds_the_values_behind_the_means(fitted: SimpleNamespace) -> None:
    episodes = rows(fitted.run / "episodes.csv")
    assert {(row["set"], row["batch_norm"]) for row in episodes} == {("paper[20]", "none")}
    for steps, mean in enumerate(result(fitted.run)["results"]["paper[20]"]["mean"]):
        values = {int(row["episode"]): float(row["mse"]) for row in episodes if int(row["steps"]) == steps}
        assert sorted(values) == list(range(20))
        assert sum(values.values()) / 20 == pytest.approx(mean, rel=1e-12)


def test_the_last_checkpoint_is_the_end_of_the_run_and_not_the_last_multiple(fitted: SimpleNamespace) -> None:
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in fitted.run.glob("checkpoints/*.ckpt")}
    assert steps["last.ckpt"] == 22
    assert steps["step20.ckpt"] == 20


def test_the_table_on_the_screen_has_the_measured_and_the_published_row(fitted: SimpleNamespace) -> None:
    lines = fitted.printed.splitlines()
    mean = result(fitted.run)["results"]["paper[20]"]["mean"]
    measured = next(line for line in lines if "mean ± 95%" in line)
    assert "paper[20]" in measured
    for steps in range(4):
        assert f"{mean[steps]:.4g} ±" in measured
    published = next(line for line in lines if "published" in line)
    assert [cell.strip() for cell in published.split("│")][2:6] == ["published", "", "0.6789", ""]
    assert "mse on meta-test after n gradient steps (no batch norm)" in fitted.printed
    assert f"results: {fitted.run / 'result.json'}" in lines


# ---- the next run ----------------------------------------------------------------------------------------------------


def test_fit_from_the_written_config_repeats_the_run_beside_the_first(copied: SimpleNamespace) -> None:
    before = contents(copied.run)
    cli.run(["fit", "-c", str(copied.run / "config.yaml"), "--trainer.default_root_dir", str(copied.root)])
    assert sorted(path.name for path in copied.root.iterdir()) == ["seed_0", "seed_0_v2"]
    assert contents(copied.run) == before
    again = copied.root / "seed_0_v2"
    assert set(contents(again)) == set(before)
    assert result(again)["results"] == result(copied.run)["results"]
    assert (again / "csv/version_0/metrics.csv").read_bytes() == before["csv/version_0/metrics.csv"]
    old, new = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (copied.run, again))
    assert all(torch.equal(old["state_dict"][name], new["state_dict"][name]) for name in old["state_dict"])


def test_the_written_config_names_no_run_directory(fitted: SimpleNamespace) -> None:
    text = (fitted.run / "config.yaml").read_text()
    assert f"default_root_dir: {fitted.root}\n" in text
    assert str(fitted.run) not in text


def test_a_third_fit_takes_the_next_number_and_ignores_longer_names(tmp_path: Path) -> None:
    for name in ("seed_0", "seed_0_v2", "seed_00", "seed_0_v2_old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    done = cli.run(short(tmp_path))
    assert Path(done.trainer.default_root_dir) == tmp_path / "seed_0_v3"
    assert (tmp_path / "seed_0_v3" / "result.json").exists()


def test_run_name_and_seed_name_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards
    done = cli.run(short(tmp_path, "--run_name", "tried"))
    assert Path(done.trainer.default_root_dir) == tmp_path / "tried"
    done = cli.run(short(tmp_path, "--seed_everything", "3"))
    assert Path(done.trainer.default_root_dir) == tmp_path / "seed_3"
    assert result(tmp_path / "seed_3")["seed"] == 3


def test_without_a_test_the_result_still_says_how_far_training_went(tmp_path: Path) -> None:
    cli.run(short(tmp_path))
    written = result(tmp_path / "seed_0")
    assert written["steps_done"] == 2
    assert "results" not in written  # two steps reach no validation either
    assert not (tmp_path / "seed_0" / "episodes.csv").exists()


def test_no_variable_of_the_environment_says_where_a_run_goes(copied: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copied.run)
    monkeypatch.setenv("MAMLLIT_RUN_DIR", str(copied.run))  # an earlier mamllit handed it on, and a shell may have kept it
    done = cli.run(short(copied.root))
    assert Path(done.trainer.default_root_dir) == copied.root / "seed_0_v2"
    assert contents(copied.run) == before


# ---- test and validate -----------------------------------------------------------------------------------------------


def test_test_takes_the_last_checkpoint_and_leaves_the_config_alone(copied: SimpleNamespace) -> None:
    before, config = result(copied.run), (copied.run / "config.yaml").read_text()
    cli.run(command("test", copied.root))
    after = result(copied.run)
    assert after["steps_done"] == 22
    assert after["results"]["paper[20]"] == before["results"]["paper[20]"]
    assert after["fit"] == before["fit"]  # what the fit wrote stays
    assert (copied.run / "config.yaml").read_text() == config
    assert [path.name for path in copied.root.iterdir()] == ["seed_0"]


def test_test_takes_the_best_checkpoint_when_asked(copied: SimpleNamespace) -> None:
    before = result(copied.run)
    cli.run(command("test", copied.root, "--ckpt_path", "best"))
    after = result(copied.run)
    assert after["steps_done"] == before["best_checkpoint"]["step"] != 22
    assert after["results"]["paper[20]"]["mean"] != before["results"]["paper[20]"]["mean"]


@pytest.mark.slow
def test_test_takes_a_named_checkpoint(copied: SimpleNamespace) -> None:
    cli.run(command("test", copied.root, "--ckpt_path", str(copied.run / "checkpoints" / "step20.ckpt")))
    assert result(copied.run)["steps_done"] == 20


def test_test_takes_the_newest_run(copied: SimpleNamespace) -> None:
    shutil.copytree(copied.run, copied.root / "seed_0_v2")
    before = contents(copied.run)
    done = cli.run(command("test", copied.root))
    assert Path(done.trainer.default_root_dir) == copied.root / "seed_0_v2"
    assert contents(copied.run) == before


@pytest.mark.parametrize(("asked", "file"), [(None, "last"), ("last", "last"), ("best", "best")])
def test_test_without_a_run_is_refused(tmp_path: Path, asked: str | None, file: str) -> None:
    more = [] if asked is None else ["--ckpt_path", asked]
    missing = tmp_path / "seed_0" / "checkpoints" / f"{file}.ckpt"
    with pytest.raises(FileNotFoundError, match=rf"^no checkpoint at {missing}: train first with `mamllit fit` and the"):
        cli.run(command("test", tmp_path, *more))
    assert not (tmp_path / "seed_0").exists()


def test_test_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.ckpt: .* or name a file with --ckpt_path$"):
        cli.run(command("test", tmp_path, "--ckpt_path", "nowhere.ckpt"))


def test_validate_evaluates_the_last_checkpoint(copied: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    done = cli.run(command("validate", copied.root, "--ckpt_path", str(copied.run / "checkpoints" / "step20.ckpt")))
    at_20 = float(metrics(copied.run, "val/mse")[-1]["val/mse"])
    assert float(done.trainer.callback_metrics["val/mse"]) == pytest.approx(at_20, rel=1e-5)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_another_progress_bar_takes_the_place_of_ours(tmp_path: Path) -> None:
    trainer = cli.run(short(tmp_path, "--trainer.callbacks+=lightning.pytorch.callbacks.RichProgressBar")).trainer
    bars = [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]
    assert [type(bar) for bar in bars] == [RichProgressBar]


def test_the_progress_bar_can_be_turned_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cli.run(short(tmp_path / "with"))
    assert "meta-training" in capfd.readouterr().err
    cli.run(short(tmp_path / "without", "--trainer.enable_progress_bar", "false"))
    assert "meta-training" not in capfd.readouterr().err


def test_run_py_is_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(REPOSITORY / "experiments" / "run.py")
    monkeypatch.setattr(sys, "argv", [script, *short(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    written = result(tmp_path / "seed_0")
    assert written["steps_done"] == 2
    assert written["command"] == [script, *short(tmp_path)]


# ---- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real_data
def test_omniglot_fit_and_test(tmp_path: Path) -> None:
    images = os.environ.get("MAMLLIT_OMNIGLOT")
    if not images:
        pytest.skip("MAMLLIT_OMNIGLOT is not set: a folder with images_background.zip and images_evaluation.zip")
    common = [
        "-c", str(REPOSITORY / "experiments" / "maml" / "omniglot_5way_1shot.yaml"), "--data.root", images,
        "--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu", "--model.compile", "false",
        "--wandb", "disabled", "--data.test_episodes", "4", "--data.val_episodes", "4", "--data.meta_batch_size", "4",
    ]  # fmt: skip
    cli.run(["fit", *common, "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"])
    fitted = result(tmp_path / "seed_0")
    assert fitted["steps_done"] == 3
    assert fitted["transductive"] is True
    tested = {"paper[4]", "paper[4]/inductive", "standard[4]", "standard[4]/inductive"}
    assert set(fitted["results"]) == {"val", *tested}
    assert fitted["results"]["standard[4]"]["queries"] == 15
    # better than chance, 1 in 5, from the reported number of inner steps on; the first ones overshoot in a network so young
    assert all(0.3 < value <= 1 for value in fitted["results"]["standard[4]"]["mean"][3:])
    assert (tmp_path / "seed_0" / "figures" / "adaptation_1shot.png").stat().st_size > 0
    cli.run(["test", *common])
    assert result(tmp_path / "seed_0")["results"] == fitted["results"]


def test_threads_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0; it must be >= 1"):
        cli.run(command("fit", tmp_path, "--threads", "0"))


def test_settings_that_are_null_are_refused_by_name(tmp_path: Path) -> None:
    for name in program.CALLBACKS:
        (tmp_path / "null.yaml").write_text(f"{name}: null\n")
        with pytest.raises(ValueError, match=f"{name} is null; leave it out of the YAML file to use its defaults"):
            cli.run(command("fit", tmp_path, "-c", str(tmp_path / "null.yaml")))


def test_threads_of_the_configuration_are_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        cli.run(short(tmp_path, "--threads", "2"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_result_names_the_commit(fitted: SimpleNamespace) -> None:
    commit = result(fitted.run)["commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
