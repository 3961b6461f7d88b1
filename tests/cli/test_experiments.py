"""`mamllit experiments`, experiments by name behind `-c`, `mamllit results`, and what `mamllit --help` says."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import QUIET, REPOSITORY

import mamllit
from mamllit import cli
from mamllit.cli.commands import COMMANDS, experiments, results

pytestmark = QUIET
EXPERIMENTS = REPOSITORY / "experiments"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mamllit", *map(str, words)])
    cli.main()


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_this_program_and_its_commands(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *words)
    printed = capsys.readouterr().out
    assert printed.startswith(f"mamllit {mamllit.__version__}: ")
    for name in ["fit", "validate", "test", *COMMANDS]:
        line = next(line for line in printed.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) >= 5, f"no word on what {name} does"
    assert "Lightning Trainer" not in printed


def test_the_list_says_what_each_command_says_itself() -> None:
    for name, text in COMMANDS.items():
        first, *_ = importlib.import_module(f"mamllit.cli.commands.{name}").main.__doc__.splitlines()
        assert first[:1].lower() + first[1:].rstrip(".") == text


@pytest.mark.parametrize("words", [["--help"], ["experiments"], ["fti"]])
def test_a_list_or_a_mistyped_command_does_not_wait_for_pytorch(words: list[str]) -> None:
    code = "import sys; from mamllit import cli; sys.argv[1:] = %r\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code % (words,)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    with pytest.raises(AttributeError, match=r"module 'mamllit\.cli' has no attribute 'nothing'; it offers TRAINER_DEFAULTS, "):
        cli.nothing  # noqa: B018


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, "--version")
    assert capsys.readouterr().out == f"mamllit {mamllit.__version__}\n"


def test_an_unknown_command_is_refused_with_the_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^mamllit: there is no command 'fitt'; did you mean 'fit'\? the commands are: fit, "):
        call(monkeypatch, "fitt")
    with pytest.raises(SystemExit, match=r"^mamllit: there is no command 'tune'; the commands are: fit, validate, test, "):
        call(monkeypatch, "tune")


def test_a_training_command_alone_asks_for_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^mamllit test: which experiment\? try `mamllit test -c demo`; `mamllit exp"):
        call(monkeypatch, "test")


def test_the_help_of_fit_is_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "fit", "--help")
    printed = capsys.readouterr().out
    assert "mamllit fit: meta-train a method and test it at the end." in printed
    assert "--init_from" in printed
    assert "Lightning Trainer command line tool" not in printed


# ---- experiments by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        ("maml/sine_10shot", "maml/sine_10shot.yaml"),
        ("sine_10shot", "maml/sine_10shot.yaml"),  # several methods have one: MAML's
        ("sine_10shot_oracle", "joint_training/sine_10shot_oracle.yaml"),
        ("demo", "demo.yaml"),
        ("hardware/cpu", "hardware/cpu.yaml"),
        ("experiments/anil/sine_10shot.yaml", "anil/sine_10shot.yaml"),  # as in a clone, elsewhere
    ],
)
def test_names_are_found_outside_of_a_clone(asked: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiments.find(asked) == EXPERIMENTS / file


def test_a_file_that_exists_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("trainer: {}\n")
    assert experiments.find("demo") == Path("demo")


def test_a_name_that_is_none_or_several_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no file or experiment is named 'sine_10shott'; did you mean sine_10shot"):
        experiments.find("sine_10shott")
    monkeypatch.setattr(experiments, "names", lambda: {"anil/a": Path("x"), "bmaml/a": Path("y")})
    with pytest.raises(ValueError, match=r"^'a' is the end of several experiments' names; choose one of: anil/a, bmaml/a$"):
        experiments.find("a")


def test_a_copy_without_experiments_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "PACKAGE", tmp_path / "mamllit")
    with pytest.raises(FileNotFoundError, match=r"^no experiment files in \S+ or beside it; install mamllit from"):
        experiments.folder()
    (tmp_path / "mamllit/experiments").mkdir(parents=True)
    (tmp_path / "mamllit/experiments/demo.yaml").touch()
    assert experiments.folder() == tmp_path / "mamllit/experiments"


def test_the_command_line_s_names_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["-c", "demo", "--config=hardware/cpu", "--trainer.max_steps", "3", "-c"]
    demo, cpu = EXPERIMENTS / "demo.yaml", EXPERIMENTS / "hardware/cpu.yaml"
    assert experiments.resolve(given) == ["-c", str(demo), f"--config={cpu}", "--trainer.max_steps", "3", "-c"]
    with pytest.raises(SystemExit, match=r"^mamllit fit: no file or experiment is named 'dem'; did you mean demo or demo_rl\?"):
        call(monkeypatch, "fit", "-c", "dem")


def test_the_list_has_every_experiment_and_no_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "experiments")
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["maml/sine_10shot"].strip() == "MAML, sine regression, 10-shot."
    files = [path.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("*.yaml")]
    assert {name.strip() for name in lines} == {f.with_suffix("").as_posix() for f in files if f.parts[0] != "sweeps"}
    call(monkeypatch, "experiments", "maml")
    assert all(line.startswith("maml/") for line in capsys.readouterr().out.splitlines())
    call(monkeypatch, "experiments", "sine_line*")
    assert len(capsys.readouterr().out.splitlines()) >= 3
    with pytest.raises(SystemExit, match=r"^mamllit experiments: no experiment matches 'maml/sine'; near: .*lists all \d+ "):
        call(monkeypatch, "experiments", "maml/sine")


def test_a_copy_is_the_file_and_writes_over_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "experiments", "maml/sine_10shot", "--copy", tmp_path)
    copied = tmp_path / "maml/sine_10shot.yaml"
    assert capsys.readouterr().out == f"{copied}\n"
    assert copied.read_bytes() == (EXPERIMENTS / "maml/sine_10shot.yaml").read_bytes()
    with pytest.raises(
        SystemExit, match=rf"^mamllit experiments: {copied} already exists; remove it or name a folder other than "
    ):
        call(monkeypatch, "experiments", "maml", "--copy", tmp_path)
    assert not (tmp_path / "maml/sine_line_5shot.yaml").exists()


# ---- results ---------------------------------------------------------------------------------------------------------


def test_results_add_files_a_run(
    fitted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "results", "add", fitted.run, "--to", tmp_path)
    path = tmp_path / "maml/sine_10shot/seed_0.json"
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}: 22 iterations; changed: ")
    kept = json.loads(path.read_text())
    measured = json.loads((fitted.run / "result.json").read_text())
    assert kept["results"]["paper[20]"]["mean"] == measured["results"]["paper[20]"]["mean"]
    assert set(kept["results"]) == {"paper[20]"}  # what is measured on meta-val selects, and is no result
    assert (kept["cell"], kept["seed"], kept["steps_done"], kept["checkpoint"]) == ("maml/sine_10shot", 0, 22, "last")
    assert kept["changed"]["trainer.max_steps"] == {"experiment": 70000, "run": 22}
    assert not {"trainer.logger", "trainer.default_root_dir", "trainer.val_check_interval"} & set(kept["changed"])
    data = {name.rsplit(".", 1)[-1] for name in kept["changed"] if name.startswith("data.")}
    assert data == {"meta_batch_size"}, "how it was evaluated is no change of the training"
    assert str(fitted.root) not in path.read_text()
    assert "command" not in kept
    assert results.text(kept) == path.read_text()
    longer = {**kept, "of_steps": 23}
    path.write_text(json.dumps(longer))
    with pytest.raises(SystemExit, match=r"^mamllit results: \S+ is from 23 iterations, and this run made 22; remove the file"):
        call(monkeypatch, "results", "add", fitted.run, "--to", tmp_path)


def test_where_a_run_began_is_kept_without_the_machine_s_folders(
    fitted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted.run, run)
    result = json.loads((run / "result.json").read_text())
    for name, kept in (
        ("/home/me/runs/pretrain/toy/seed_0/checkpoints/best.ckpt", "runs/pretrain/toy/seed_0/checkpoints/best.ckpt"),
        ("/home/me/best.ckpt", "best.ckpt"),
        ("maml_toy", "maml_toy"),
    ):
        result["fit"]["started_from"] = {"name": name, "steps_done": 6, "seed": None}
        (run / "result.json").write_text(json.dumps(result))
        assert results.record(run)["started_from"] == {"name": kept, "steps_done": 6, "seed": None}


def test_results_add_refuses_what_is_no_result(
    fitted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"^mamllit results: there is no folder \S+nowhere; run this in a clone of mamllit or"):
        call(monkeypatch, "results", "add", fitted.run, "--to", tmp_path / "nowhere")
    with pytest.raises(SystemExit, match=r"is not a run directory of `mamllit fit`; missing: \S+config\.yaml, \S+result"):
        call(monkeypatch, "results", "add", tmp_path, "--to", tmp_path)
    run = shutil.copytree(fitted.run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "results": {"val": result["results"]["val"]}}))
    with pytest.raises(SystemExit, match=r"run was not tested: run `mamllit test` with its configuration first "):
        call(monkeypatch, "results", "add", run, "--to", tmp_path)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("maml/sine_10shot", "mine/own"))
    with pytest.raises(
        SystemExit, match=r"^mamllit results: no experiment has .*, and results are stored by experiment; `mamllit experiments`"
    ):
        call(monkeypatch, "results", "add", run, "--to", tmp_path)


def test_a_setting_counts_where_both_know_it() -> None:
    experiment = {"trainer": {"max_steps": 5, "clip": None}, "data": {"init_args": {"root": "a", "shots": 1}}, "new": 1}
    run = {"trainer": {"max_steps": 5, "clip": 1.0}, "data": {"init_args": {"root": "b", "shots": 1}}, "old": 2}
    assert results.changes(experiment, run) == {"trainer.clip": {"experiment": None, "run": 1.0}}
    assert results.changes({"model": {"image_size": "data"}}, {"model": {"image_size": 28}}) == {}, "left to the data"
