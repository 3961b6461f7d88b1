"""The result file, the per-episode file and the printed table, from summaries made by hand."""

import csv
import io
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from mamllit.backbones import MLP, Conv4
from mamllit.callbacks import DurableCheckpointIO, ResultWriter
from mamllit.core.metrics import Summary
from mamllit.data import EvaluationSet
from mamllit.methods import MAML
from mamllit.objectives import Classification, Regression
from mamllit.systems import MetaLearner
from mamllit.systems.reading import readings_of

INF, NAN = float("inf"), float("nan")


def summary(mean: list[float], episodes: int = 2) -> Summary:
    values = torch.tensor(mean, dtype=torch.float64)
    return Summary(values, values / 10, values / 2, torch.tensor([0.0, 0.0, 0.125][: len(mean)]), episodes)


@pytest.fixture
def learner() -> MetaLearner:
    """A regression learner tested on two sets with 2 inner steps; a validation lies behind it."""
    learner = MetaLearner(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "sum_over_shots"), eval_steps=2)
    learner.evaluation_sets = [
        EvaluationSet("paper/5-shot", "paper", "test", 5, 5, 2),
        EvaluationSet("standard/5-shot", "standard", "test", 5, 100, 2),
    ]
    learner.readings = readings_of(learner.evaluation_sets, (None,))
    learner.summaries = {
        "val": summary([9.0, 9.0, 9.0]),
        "paper/5-shot": summary([3.5, 0.67, 0.123456]),
        "standard/5-shot": summary([4.0, INF, NAN]),
    }
    rows = torch.tensor([[3.0, 1.0, 0.5], [4.0, INF, 0.25]], dtype=torch.float64)
    learner.per_episode = {
        "val": (torch.tensor([0, 1]), rows),
        "paper/5-shot": (torch.tensor([0, 1]), rows),
        "standard/5-shot": (torch.tensor([0, 1]), rows + 1),
    }
    learner.trained_steps = 700
    learner.measured_at = {"val": 600, "paper/5-shot": 700, "standard/5-shot": 700}
    return learner


def trainer(folder: Path, **changes: Any) -> Any:
    """What ResultWriter uses of a Trainer."""
    values = {
        "default_root_dir": str(folder),
        "is_global_zero": True,
        "datamodule": SimpleNamespace(seed=11),
        "loggers": [],
        "global_step": 700,
        "max_steps": 1000,
        "checkpoint_callbacks": [],
        "callbacks": [],
        "strategy": SimpleNamespace(checkpoint_io=DurableCheckpointIO()),
    }
    values |= changes
    for callback in values["checkpoint_callbacks"]:
        callback.dirpath = callback.dirpath or str(folder / "checkpoints")
    first = next(iter(values["checkpoint_callbacks"]), None)
    return SimpleNamespace(checkpoint_callback=first, **values)


def result(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads((folder / "result.json").read_text(), parse_constant=refuse)


def printed(writer: ResultWriter, learner: MetaLearner) -> list[list[str]]:
    """The cells of the printed table, line by line."""
    console = Console(width=200, file=io.StringIO())
    console.print(writer.table(learner))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")] for line in lines if line[0] in "│┃"]


# ---- the files -------------------------------------------------------------------------------------------------------


def test_result_json_holds_the_measured_sets_and_writes_inf_and_nan_as_words(learner: MetaLearner, tmp_path: Path) -> None:
    ResultWriter().on_test_end(trainer(tmp_path), learner)
    written = result(tmp_path)
    assert (written["method"], written["metric"], written["transductive"]) == ("MAML", "mse", False)
    assert (written["steps_done"], written["seed"]) == (700, 11)
    assert set(written["results"]) == {"paper/5-shot", "standard/5-shot"}
    assert written["results"]["paper/5-shot"] == {
        "protocol": "paper",
        "split": "test",
        "step": 700,
        "batch_norm": None,
        "shots": 5,
        "queries": 5,
        "episodes": 2,
        "mean": [3.5, 0.67, 0.123456],
        "ci95": pytest.approx([0.35, 0.067, 0.0123456]),
        "median": pytest.approx([1.75, 0.335, 0.061728]),
        "diverged": [0.0, 0.0, 0.125],
    }
    assert written["results"]["standard/5-shot"]["mean"] == [4.0, "inf", "nan"]
    assert float(written["results"]["standard/5-shot"]["mean"][1]) == INF


def test_episodes_csv_has_one_row_per_set_episode_and_steps(learner: MetaLearner, tmp_path: Path) -> None:
    ResultWriter().on_test_end(trainer(tmp_path), learner)
    with (tmp_path / "episodes.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["set", "batch_norm", "episode", "steps", "mse"]
    assert len(rows) == 2 * 2 * 3
    assert rows[:4] == [
        ["paper/5-shot", "none", "0", "0", "3.0"],
        ["paper/5-shot", "none", "0", "1", "1.0"],
        ["paper/5-shot", "none", "0", "2", "0.5"],
        ["paper/5-shot", "none", "1", "0", "4.0"],
    ]
    assert ["paper/5-shot", "none", "1", "1", "inf"] in rows
    assert rows[-1] == ["standard/5-shot", "none", "1", "2", "1.25"]


def test_a_later_test_adds_to_what_the_fit_wrote(learner: MetaLearner, tmp_path: Path) -> None:
    writer, readings = ResultWriter(), learner.readings
    learner.readings = readings_of([EvaluationSet("val", "standard", "val", 10, 100, 2)], (None,))
    writer.on_train_start(trainer(tmp_path, global_step=300), learner)
    writer.on_train_end(trainer(tmp_path, global_step=800), learner)
    fit = result(tmp_path)
    assert fit["steps_done"] == 800  # the Trainer's count: the learner's own is set later
    assert (fit["fit"]["steps_asked"], fit["fit"]["steps_this_session"]) == (1000, 500)
    assert fit["fit"]["iterations_per_second"] > 0
    assert set(fit["results"]) == {"val"}
    assert not (tmp_path / "episodes.csv").exists()
    learner.readings = readings
    ResultWriter().on_test_end(trainer(tmp_path), learner)
    both = result(tmp_path)
    assert set(both["results"]) == {"val", "paper/5-shot", "standard/5-shot"}
    assert both["fit"] == fit["fit"]
    assert both["steps_done"] == 700


def test_the_last_validation_goes_with_the_checkpoint(learner: MetaLearner, tmp_path: Path) -> None:
    """Of a run that is killed after a validation, and does not come to another one when it is resumed."""
    first, second = ResultWriter(), ResultWriter()
    learner.readings = readings_of([EvaluationSet("val", "paper", "val", 10, 10, 2)], (None,))
    fitting = trainer(tmp_path, sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.FITTING))
    first.on_validation_end(fitting, learner)
    assert not (tmp_path / "result.json").exists()
    second.load_state_dict(first.state_dict())
    learner.readings, learner.summaries = [], {}
    second.on_train_start(fitting, learner)
    second.on_train_end(fitting, learner)
    (entry,) = result(tmp_path)["results"].values()
    assert (entry["split"], entry["step"], entry["mean"]) == ("val", 600, [9.0, 9.0, 9.0])
    ResultWriter().load_state_dict({"seconds": 1.0})  # of an older checkpoint


def test_a_validation_by_itself_prints_our_table_and_leaves_the_rest_of_the_result(
    learner: MetaLearner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ResultWriter().on_test_end(trainer(tmp_path), learner)
    before = result(tmp_path)
    learner.evaluation_sets = [EvaluationSet("val", "paper", "val", 10, 10, 2)]
    learner.readings, learner.trained_steps = readings_of(learner.evaluation_sets, (None,)), 600
    capsys.readouterr()
    validating = trainer(tmp_path, sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    ResultWriter().on_validation_end(validating, learner)
    printed_text = capsys.readouterr().out
    assert "mse on meta-val after n gradient steps (no batch norm)" in printed_text
    assert "meta-val episodes" in printed_text
    after = result(tmp_path)
    assert after["results"].pop("val")["step"] == 600
    assert after == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"results": []}', "[" * 100_000, b"\xff\xfe"])
def test_a_damaged_result_is_put_aside(learner: MetaLearner, tmp_path: Path, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    (tmp_path / "result.json").write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"result\.json cannot be read \(.*\); it is kept as result_damaged\.json and a new one is"
    ):
        ResultWriter().on_test_end(trainer(tmp_path), learner)
    assert result(tmp_path)["steps_done"] == 700
    assert (tmp_path / "result_damaged.json").read_bytes() == content


@pytest.mark.parametrize("seeded", [True, False])
def test_a_run_without_a_seed_says_so(learner: MetaLearner, tmp_path: Path, seeded: bool) -> None:
    ResultWriter().on_test_end(trainer(tmp_path, datamodule=SimpleNamespace(seed=0, seeded=seeded)), learner)
    assert result(tmp_path)["seed"] == (0 if seeded else None)


def test_without_the_score_of_a_run_that_was_moved_no_best_checkpoint_is_named(learner: MetaLearner, tmp_path: Path) -> None:
    torch.save({"global_step": 640}, tmp_path / "best.ckpt")
    best = ModelCheckpoint(monitor="val/mse")
    best.best_model_path = str(tmp_path / "best.ckpt")
    ResultWriter().on_train_end(trainer(tmp_path, checkpoint_callbacks=[best]), learner)
    assert "best_checkpoint" not in result(tmp_path)
    best.best_model_score = torch.tensor(0.5)
    (tmp_path / "best.ckpt").write_bytes(b"PK")
    ResultWriter().on_train_end(trainer(tmp_path, checkpoint_callbacks=[best]), learner)
    assert "best_checkpoint" not in result(tmp_path)
    torch.save({"global_step": 640, "callbacks": {"own": SimpleNamespace()}}, tmp_path / "best.ckpt")
    ResultWriter().on_train_end(trainer(tmp_path, checkpoint_callbacks=[best]), learner)
    assert result(tmp_path)["steps_done"] == 700
    assert "best_checkpoint" not in result(tmp_path)


def test_only_the_first_rank_writes_and_prints(
    learner: MetaLearner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, other = ResultWriter(), trainer(tmp_path, is_global_zero=False)
    writer.on_train_start(other, learner)
    writer.on_train_end(other, learner)
    writer.on_test_end(other, learner)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_write_that_breaks_off_leaves_the_old_file_whole(
    learner: MetaLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ResultWriter()
    writer.on_test_end(trainer(tmp_path), learner)
    before = (tmp_path / "result.json").read_text()

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    learner.trained_steps = 900
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.warns(UserWarning, match=r"cannot write .*result\.json \(no space left on device\), nor .* printed above"):
            writer.on_test_end(trainer(tmp_path), learner)
    assert (tmp_path / "result.json").read_text() == before
    writer.on_test_end(trainer(tmp_path), learner)  # and the leftover is no obstacle
    assert result(tmp_path)["steps_done"] == 900
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("score", "written"), [(0.25, 0.25), (INF, "inf")])
def test_the_best_checkpoint_is_named(learner: MetaLearner, tmp_path: Path, score: float, written: float | str) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save({"global_step": 640}, tmp_path / "checkpoints" / "best.ckpt")
    last, best = ModelCheckpoint(save_last=True), ModelCheckpoint(monitor="val/mse")
    last.best_model_path = str(tmp_path / "checkpoints" / "step700.ckpt")  # the newest, which monitors nothing
    best.best_model_path, best.best_model_score = str(tmp_path / "checkpoints" / "best.ckpt"), torch.tensor(score)
    ResultWriter().on_train_end(trainer(tmp_path, checkpoint_callbacks=[last, best]), learner)
    expected = {"path": "checkpoints/best.ckpt", "monitor": "val/mse", "score": written, "step": 640}
    assert result(tmp_path)["best_checkpoint"] == expected


def test_a_best_checkpoint_that_could_not_be_written_is_not_named(learner: MetaLearner, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    torch.save({"global_step": 640}, path)  # of an earlier best
    best = ModelCheckpoint(monitor="val/mse")
    best.best_model_path, best.best_model_score = str(path), torch.tensor(0.25)
    of = trainer(tmp_path, checkpoint_callbacks=[best])
    of.strategy.checkpoint_io.failed[str(path)] = "No space left on device"
    ResultWriter().on_train_end(of, learner)
    assert "best_checkpoint" not in result(tmp_path)


def test_without_a_validation_no_best_checkpoint_is_named(learner: MetaLearner, tmp_path: Path) -> None:
    callbacks = [ModelCheckpoint(save_last=True), ModelCheckpoint(monitor="val/mse")]
    ResultWriter().on_train_end(trainer(tmp_path, checkpoint_callbacks=callbacks), learner)
    assert "best_checkpoint" not in result(tmp_path)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_mean_median_diverged_and_published_rows(learner: MetaLearner) -> None:
    writer = ResultWriter(published={"paper/5-shot": {1: 0.67, 10: 0.35}}, table_steps=(0, 1, 2, 10))
    head, *rows = printed(writer, learner)
    assert head == ["meta-test episodes", "", "0 steps", "1 step", "2 steps"]  # 10 is beyond eval_steps
    assert rows == [
        ["paper/5-shot", "mean ± 95%", "3.5 ± 0.35", "0.67 ± 0.067", "0.1235 ± 0.012"],
        ["(2 x 5 queries)", "", "", "", ""],
        ["", "median", "1.75", "0.335", "0.06173"],
        ["", "diverged", "0.00%", "0.00%", "12.50%"],
        ["", "published", "", "0.67", ""],
        ["standard/5-shot", "mean ± 95%", "4 ± 0.4", "inf ± inf", "nan ± nan"],
        ["(2 x 100 queries)", "", "", "", ""],
        ["", "median", "2", "inf", "nan"],
        ["", "diverged", "0.00%", "0.00%", "12.50%"],
    ]
    assert writer.table(learner).title == "mse on meta-test after n gradient steps (no batch norm)"


@pytest.fixture
def classifier() -> MetaLearner:
    """A learner with batch norm, tested on one set with both kinds of statistics."""
    method = MAML(Conv4(1, 4, 2, 8, "stride"), Classification(), 0.4, 1, "sum_over_shots")
    learner = MetaLearner(method, eval_steps=2)
    learner.evaluation_sets = [EvaluationSet("paper", "paper", "test", 1, 1, 2)]
    learner.readings = readings_of(learner.evaluation_sets, learner.batch_norm)
    learner.summaries = {"paper": summary([0.2, 0.9, 0.95]), "paper/inductive": summary([0.2, 0.8, 0.85])}
    rows = torch.tensor([[0.0, 1.0, 0.5], [0.5, 0.0, 0.25]], dtype=torch.float64)
    learner.per_episode = {name: (torch.tensor([0, 1]), rows + i) for i, name in enumerate(learner.summaries)}
    return learner


def test_the_table_of_a_classifier_has_a_row_for_each_kind_of_batch_norm_and_no_median(classifier: MetaLearner) -> None:
    writer = ResultWriter(published={"paper": {1: 0.987, 2: 0.99}}, published_ci95={"paper": {1: 0.004}})
    _, *rows = printed(writer, classifier)
    assert [row[1] for row in rows] == ["transductive ± 95%", "", "published", "inductive ± 95%"]
    assert [row[2:] for row in rows if row[1]] == [
        ["0.2 ± 0.02", "0.9 ± 0.09", "0.95 ± 0.095"],
        ["", "0.987 ± 0.004", "0.99"],
        ["0.2 ± 0.02", "0.8 ± 0.08", "0.85 ± 0.085"],
    ]
    assert (rows[0][0], rows[1][0]) == ("paper", "(2 x 1 queries per class)")
    assert writer.table(classifier).title == "accuracy on meta-test after n gradient steps"


def test_a_test_of_one_kind_of_batch_norm_writes_that_alone(classifier: MetaLearner, tmp_path: Path) -> None:
    classifier.readings = readings_of(classifier.evaluation_sets, ("inductive",))
    del classifier.summaries["paper"]
    ResultWriter(published={"paper": {1: 0.987}}).on_test_end(trainer(tmp_path), classifier)
    assert list(result(tmp_path)["results"]) == ["paper/inductive"]
    assert [row[1] for row in printed(ResultWriter(), classifier)[1:]] == ["inductive ± 95%", ""]


def test_the_files_name_the_kind_of_batch_norm(classifier: MetaLearner, tmp_path: Path) -> None:
    ResultWriter().on_test_end(trainer(tmp_path), classifier)
    entries = result(tmp_path)["results"]
    assert {name: entry["batch_norm"] for name, entry in entries.items()} == {
        "paper": "transductive",
        "paper/inductive": "inductive",
    }
    assert entries["paper/inductive"]["mean"] == [0.2, 0.8, 0.85]
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    assert {(row["set"], row["batch_norm"]) for row in rows} == {("paper", "transductive"), ("paper", "inductive")}
    assert [float(row["accuracy"]) for row in rows if row["batch_norm"] == "inductive"] == [1, 2, 1.5, 1.5, 1, 1.25]


def test_a_clone_that_moves_on_during_a_run_does_not_change_its_commit(
    learner: MetaLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, writer = ["old"], ResultWriter()
    monkeypatch.setattr("mamllit.callbacks.results.commit", cache(lambda: head[0]))
    writer.on_train_start(trainer(tmp_path), learner)
    head[0] = "new"
    writer.on_train_end(trainer(tmp_path), learner)
    assert (result(tmp_path)["commit"], result(tmp_path)["fit"]["commit"]) == ("old", "old")


def test_the_seconds_of_all_sessions_are_added_up(
    learner: MetaLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 s to a checkpoint after 40; the second session, from that checkpoint, takes 30 s."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first, second = ResultWriter(), ResultWriter()
    assert first.state_dict() == {"seconds": 0.0}
    first.on_train_start(trainer(tmp_path), learner)
    now[0] += 40
    second.load_state_dict(first.state_dict())
    now[0] += 60
    first.on_train_end(trainer(tmp_path), learner)
    assert result(tmp_path)["fit"]["seconds"] == 100
    second.on_train_start(trainer(tmp_path), learner)
    now[0] += 30
    second.on_train_end(trainer(tmp_path), learner)
    fit = result(tmp_path)["fit"]
    assert (fit["seconds_this_session"], fit["seconds"]) == (30, 70)
    now[0] += 500  # the test after the fit
    assert second.state_dict() == {"seconds": 70}


def test_a_test_prints_the_table_and_where_the_file_is(
    learner: MetaLearner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ResultWriter(table_steps=(2,)).on_test_end(trainer(tmp_path), learner)
    out = capsys.readouterr().out
    assert "0.1235 ± 0.012" in out
    assert out.endswith(f"results: {tmp_path / 'result.json'}\n")
