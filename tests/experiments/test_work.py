"""Which commands are run for a cell, and which are not run again; the commands themselves are replaced by their effect."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from reproduction import work
from reproduction.cells import Cell
from reproduction.work import Failed, Options, checkpoints, evaluate, newest_run, of_run, steps_of, train

TRAINING = {"steps_asked": 600, "seconds": 5.0, "commit": "abc"}


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    path = tmp_path / "toy_3way_1shot.yaml"
    path.write_text("a: 1\n")
    trainer = {"max_steps": 600, "val_check_interval": 100, "default_root_dir": str(tmp_path / "runs/maml/toy")}
    return Cell("maml/toy", "toy", path, {"trainer": trainer, "model": {"init_args": {"report_step": 1}}})


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path / "out")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands; a test leaves an empty run directory."""
    commands: list[list[str]] = []

    def fake(*words: object) -> None:
        commands.append([str(word) for word in words])
        parent, name = (str(words[words.index(key) + 1]) for key in ("--trainer.default_root_dir", "--run_name"))
        (Path(parent) / name).mkdir(parents=True)

    monkeypatch.setattr(work, "mamllit", fake)
    return commands


def save(run: Path, steps: int, name: str = "last") -> Path:
    path = run / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": steps}, path)
    return path


def fit_reaches(monkeypatch: pytest.MonkeyPatch, run: Path, steps: int) -> list[list[str]]:
    commands: list[list[str]] = []

    def fake(*words: object) -> None:
        commands.append([str(word) for word in words])
        save(run, steps)

    monkeypatch.setattr(work, "mamllit", fake)
    return commands


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_new_training_is_the_documented_command(cell: Cell, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cell.run_root / "seed_3"
    commands = fit_reaches(monkeypatch, run, 600)
    assert train(cell, 3, options) == run
    assert commands == [["fit", "-c", str(cell.path), "--seed_everything", "3", "--test_after_fit", "false"]]


def test_a_shorter_one_says_so_and_still_validates(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(tmp_path / "out", 50, {"toy": "images"}, tmp_path / "elsewhere", ["--threads", "1"])
    run = tmp_path / "elsewhere/maml/toy/seed_0"
    commands = fit_reaches(monkeypatch, run, 50)
    train(cell, 0, options)
    (command,) = commands
    assert command[7:] == [
        "--trainer.max_steps", "50", "--trainer.val_check_interval", "50",
        "--trainer.default_root_dir", str(tmp_path / "elsewhere/maml/toy"), "--data.root", "images", "--threads", "1",
    ]  # fmt: skip


def test_a_half_done_training_goes_on(cell: Cell, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    save(cell.run_root / "seed_0", 600)
    half = save(cell.run_root / "seed_0_v2", 240).parents[1]  # the newest counts
    commands = fit_reaches(monkeypatch, half, 600)
    assert train(cell, 0, options) == half
    assert commands[0][-2:] == ["--ckpt_path", "last"]


def test_what_a_recipe_begins_with_is_trained_first(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; a stopped recipe goes on without it."""
    trainer = {"max_steps": 40, "val_check_interval": 10, "default_root_dir": str(tmp_path / "runs/pretrain/toy")}
    start = Cell("pretrain/toy", "toy", tmp_path / "pretrain.yaml", {"trainer": trainer})
    recipe, commands = replace(cell, name="recipes/toy", start=start), []

    def fake(*words: object) -> None:
        commands.append([str(word) for word in words])
        begins = "--init_from" not in words
        save((start if begins else cell).run_root / "seed_0", 40 if begins else 240 if "--ckpt_path" not in words else 600)

    monkeypatch.setattr(work, "mamllit", fake)
    with pytest.raises(Failed, match="stopped after 240 of 600 steps"):
        train(recipe, 0, Options(tmp_path / "out"))
    train(recipe, 0, Options(tmp_path / "out"))
    begun = ["--init_from", str(start.run_root / "seed_0")]
    assert [command[2] for command in commands] == [str(start.path), str(cell.path), str(cell.path)]
    assert [command[-2:] for command in commands[1:]] == [begun, begun]
    assert "--ckpt_path" in commands[2]


@pytest.mark.parametrize("steps", [600, 900])
def test_a_finished_training_is_left_alone(steps: int, cell: Cell, options: Options, called: list) -> None:
    run = save(cell.run_root / "seed_0", steps).parents[1]
    assert train(cell, 0, options) == run
    assert called == []


@pytest.mark.parametrize("steps", [None, 50])
def test_a_cell_without_a_training_is_named(steps: int | None, cell: Cell, tmp_path: Path, called: list) -> None:
    cell.document["trainer"]["max_steps"] = 0
    command = rf"its max_steps is 0: nothing is trained; `mamllit fit -c {re.escape(str(cell.path))}` tests it"
    with pytest.raises(Failed, match=command):
        train(cell, 0, Options(tmp_path / "out", steps))
    assert called == []


def test_a_training_that_stops_early_is_named(cell: Cell, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_reaches(monkeypatch, cell.run_root / "seed_0", 599)
    with pytest.raises(Failed, match=r"seed_0 stopped after 599 of 600 steps; run the same command again to go on"):
        train(cell, 0, options)


@pytest.mark.slow
def test_a_command_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match=r"`mamllit fit -c 'no such file.yaml'` ended with code 1"):
        work.mamllit("fit", "-c", "no such file.yaml")
    assert capfd.readouterr().out.startswith("\n$ mamllit fit -c 'no such file.yaml'\n")


def test_the_newest_run_is_the_highest_version(tmp_path: Path) -> None:
    assert newest_run(tmp_path, 1) == tmp_path / "seed_1"
    for name in ("seed_1", "seed_1_v2", "seed_1_v10", "seed_1_v9", "seed_11_v20", "seed_1_other"):
        save(tmp_path / name, 1)
    (tmp_path / "seed_1_v11").mkdir()  # a fit that was killed before its first checkpoint
    assert newest_run(tmp_path, 1) == tmp_path / "seed_1_v10"


def test_steps_of_a_missing_checkpoint_are_none(tmp_path: Path) -> None:
    assert steps_of(tmp_path / "last.ckpt") == 0
    assert steps_of(save(tmp_path, 77)) == 77


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_evaluated_where_it_is_another_step(tmp_path: Path) -> None:
    last = save(tmp_path, 600)
    assert checkpoints(tmp_path) == {"last": last}
    best = save(tmp_path, 400, "best")
    assert checkpoints(tmp_path) == {"last": last, "best": best}
    save(tmp_path, 600, "best")
    assert checkpoints(tmp_path) == {"last = best": last}


def test_an_evaluation_is_done_once(cell: Cell, options: Options, called: list) -> None:
    checkpoint = save(cell.run_root / "seed_0", 600)
    arguments: Any = (cell, 0, "last", checkpoint, checkpoint, TRAINING, options)
    assert evaluate(*arguments) is True
    parent = options.out / "evaluations/maml/toy/seed_0"
    assert called == [
        ["test", "-c", str(cell.path), "--seed_everything", "0", "--trainer.default_root_dir", str(parent),
         "--run_name", "last", "--ckpt_path", str(checkpoint), "--wandb", "disabled"]
    ]  # fmt: skip
    assert evaluate(*arguments) is False
    assert len(called) == 1
    record = json.loads((parent / "last/evaluated.json").read_text())
    assert (record["rule"], record["seed"], record["training"]) == ("last", 0, TRAINING)


@pytest.mark.parametrize("change", ["checkpoint", "configuration", "arguments", "record"])
def test_it_is_done_again_where_something_changed_or_is_missing(
    change: str, cell: Cell, options: Options, called: list
) -> None:
    checkpoint = save(cell.run_root / "seed_0", 600)
    evaluate(cell, 0, "last", checkpoint, checkpoint, TRAINING, options)
    folder = options.out / "evaluations/maml/toy/seed_0/last"
    (folder / "episodes.csv").write_text("of the first")
    if change == "checkpoint":
        save(cell.run_root / "seed_0", 700)
    elif change == "configuration":
        cell.path.write_text("a: 2\n")
    elif change == "arguments":
        options = Options(options.out, more=["--data.test_episodes", "4"])
    else:
        (folder / "evaluated.json").unlink()
    assert evaluate(cell, 0, "last", checkpoint, checkpoint, TRAINING, options) is True
    assert len(called) == 2
    assert not (folder / "episodes.csv").exists()


def test_a_failed_evaluation_leaves_no_record(cell: Cell, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> None:
        raise Failed("no")

    monkeypatch.setattr(work, "mamllit", fail)
    checkpoint = save(cell.run_root / "seed_0", 600)
    with pytest.raises(Failed, match="no"):
        evaluate(cell, 0, "last", checkpoint, checkpoint, TRAINING, options)
    assert not list(options.out.rglob("evaluated.json"))


def test_what_a_longer_training_made_untrue_goes(cell: Cell, options: Options, called: list) -> None:
    """First the last checkpoint was the best; after more steps it is not; and then again."""
    checkpoint = save(cell.run_root / "seed_0", 600)

    def left(*rules: str) -> set[str]:
        for rule in rules:
            evaluate(cell, 0, rule, checkpoint, checkpoint, TRAINING, options)
        return {path.parent.name for path in options.out.rglob("evaluated.json")}

    assert left("last = best") == {"last_best"}
    assert left("last", "best") == {"last", "best"}
    assert left("best, pretrained") == {"last", "best", "best_pretrained"}
    assert left("last = best") == {"last_best", "best_pretrained"}


def test_the_training_is_described_by_its_result(cell: Cell, tmp_path: Path) -> None:
    assert of_run(tmp_path, cell) == {"steps_asked": 600, "seconds": None, "commit": None}
    (tmp_path / "result.json").write_text(json.dumps({"fit": {"seconds": 12.5, "commit": "def"}, "commit": "later"}))
    assert of_run(tmp_path, cell) == {"steps_asked": 600, "seconds": 12.5, "commit": "def"}
