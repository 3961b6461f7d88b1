"""reproduce.py from end to end on random images: killed and run again it ends with the table of an uninterrupted run."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
import reproduce  # noqa: E402
from reproduction.cells import Cell  # noqa: E402
from reproduction.work import Failed  # noqa: E402

TOY = Path(__file__).parent / "toy.yaml"
START = "import sys; from pathlib import Path; import reproduce; sys.exit(reproduce.main(sys.argv[2:], Path(sys.argv[1])))"

pytestmark = pytest.mark.slow  # whole runs


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """`python experiments/reproduce.py toy` in `folder`, with the cells of `folder`/cells."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        map(str, (REPOSITORY, REPOSITORY / "experiments", REPOSITORY / "tests/helpers"))
    )
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-c", START, str(folder / "cells"), "toy", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-3000:]
    return out


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/reproduce/toy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`whole`: an uninterrupted run. `stopped`: killed in its training, run again, and then once more."""
    root = tmp_path_factory.mktemp("reproduce")
    for name in ("whole", "stopped"):
        (root / name / "cells" / "maml").mkdir(parents=True)
        shutil.copy(TOY, root / name / "cells" / "maml" / "toy_3way_1shot.yaml")
    whole, stopped = root / "whole", root / "stopped"
    said = {"whole": finish(start(whole))}
    process = start(stopped)
    checkpoint, deadline = stopped / "runs/maml/toy_3way_1shot/seed_0/checkpoints/last.ckpt", time.monotonic() + 240
    try:
        while not checkpoint.exists():
            assert process.poll() is None, "ended by itself"
            assert time.monotonic() < deadline, "no checkpoint after 240 s"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said |= {"resumed": finish(start(stopped)), "again": finish(start(stopped))}
    return SimpleNamespace(whole=whole, stopped=stopped, said=said)


def test_a_stopped_run_goes_on_and_ends_with_the_same_table(runs: SimpleNamespace) -> None:
    assert "--ckpt_path last" in runs.said["resumed"]
    assert [path.name for path in (runs.stopped / "runs/maml/toy_3way_1shot").iterdir()] == ["seed_0"]
    assert table(runs.stopped) == table(runs.whole)


def test_the_third_run_has_nothing_to_do(runs: SimpleNamespace) -> None:
    assert "$ mamllit" not in runs.said["again"]
    assert table(runs.stopped) == table(runs.whole)


def test_the_table_holds_both_checkpoints_both_norms_and_the_published_value(runs: SimpleNamespace) -> None:
    rows = table(runs.whole)
    assert [row["checkpoint"] for row in rows] in (["last", "best"], ["last = best"])
    for row in rows:
        assert (row["episodes"], row["inner_steps"], row["published"]) == ("standard[40], 40 x 3", "1", "0.9")
        assert 1 / 3 < float(row["transductive"]) <= 1
        assert float(row["batch_norm_costs"]) == pytest.approx(float(row["inductive"]) - float(row["transductive"]))
    assert (rows[0]["steps_done"], rows[0]["steps_asked"]) == ("300", "300")


def test_the_document_and_the_figure_are_written(runs: SimpleNamespace) -> None:
    folder = runs.whole / "runs/reproduce"
    text = (folder / "toy.md").read_text()
    assert text in runs.said["whole"]
    assert "| maml/toy_3way_1shot | 0, last" in text
    assert "## To finish" not in text  # it has its full length
    assert (folder / "toy.png").read_bytes().startswith(b"\x89PNG")


# ---- which cells, in this process ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two cells; what is asked of training and evaluation is noted and not done."""
    for name in ("toy_3way_1shot", "toy_3way_5shot"):
        (tmp_path / "maml").mkdir(exist_ok=True)
        shutil.copy(TOY, tmp_path / "maml" / f"{name}.yaml")
    monkeypatch.syspath_prepend(REPOSITORY / "tests/helpers")
    done: list[tuple] = []

    def from_training(cell: Cell, seed: int, *rest: Any) -> None:
        done.append((cell.path.stem, seed))

    monkeypatch.setattr(reproduce, "from_training", from_training)
    return SimpleNamespace(path=tmp_path, done=done, out=["--out", str(tmp_path / "out")])


def test_every_cell_is_trained_with_every_seed(world: SimpleNamespace) -> None:
    assert reproduce.main(["toy", "--seeds", "1", "4", *world.out], world.path) == 0
    cells = ("toy_3way_1shot", "toy_3way_5shot")
    assert world.done == [(cell, seed) for cell in cells for seed in (1, 4)]


def test_absent_data_are_named_and_the_rest_runs(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "its data are absent: no images. The command that gets them: mamllit fit ..."
    path = world.path / "maml/toy_3way_5shot.yaml"
    path.write_text(path.read_text().replace("test_episodes: 40", "test_episodes: 41"))
    monkeypatch.setattr(Cell, "data_problem", lambda self, root: problem if "1shot" in self.name else None)
    assert reproduce.main(["toy", *world.out], world.path) == 1
    assert world.done == [("toy_3way_5shot", 0)]
    written = (world.path / "out/toy.md").read_text()
    assert f"## Not in the table\n\n- maml/toy_3way_1shot: {problem}\n" in written
    assert problem in capsys.readouterr().out


def test_a_failed_cell_is_named_and_the_rest_runs(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cell: Cell, seed: int, *rest: Any) -> None:
        world.done.append(cell.path.stem)
        if "1shot" in cell.name:
            raise Failed("`mamllit fit` ended with code 1")

    monkeypatch.setattr(reproduce, "from_training", fail)
    assert reproduce.main(["toy", *world.out], world.path) == 1
    assert world.done == ["toy_3way_1shot", "toy_3way_5shot"]
    assert "- maml/toy_3way_1shot: `mamllit fit` ended with code 1" in (world.path / "out/toy.md").read_text()


@pytest.mark.parametrize(("train", "seeds"), [([], []), (["--train"], [("toy_3way_1shot", 0)])])
def test_a_checkpoint_that_comes_with_mamllit_is_evaluated_unless_training_is_asked_for(
    train: list[str], seeds: list, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.path / "maml_toy_3way_1shot.safetensors"
    file.write_bytes(b"tensors")
    fit = {"seconds": 12.5, "commit": "abc"}
    kept = SimpleNamespace(result={"seed": 7, "checkpoint": "best", "commit": "of the test", "steps_done": 300, "fit": fit})
    monkeypatch.setattr(
        reproduce,
        "pretrained",
        SimpleNamespace(names=lambda: [file.stem], find=lambda name: file, read=lambda path: (kept, {})),
    )
    asked: list[tuple] = []
    monkeypatch.setattr(reproduce, "evaluate", lambda cell, *rest: asked.append((cell.path.stem, *rest)))
    reproduce.main(["toy", *train, *world.out], world.path)
    assert world.done == [*seeds, ("toy_3way_5shot", 0)]
    if not train:
        ((name, seed, rule, checkpoint, used, training, _),) = asked
        assert (name, seed, rule, checkpoint) == ("toy_3way_1shot", 7, "best, pretrained", "maml_toy_3way_1shot")
        assert used == file
        assert training == {"steps_asked": 300, "seconds": 12.5, "commit": "abc"}
    else:
        assert asked == []


def test_what_follows_two_dashes_goes_to_mamllit() -> None:
    asked = reproduce.parse(["sine", "--steps", "5", "--data", "a=b=c", "d=e", "--", "--threads", "1"])
    assert (asked.more, asked.steps, asked.data) == (["--threads", "1"], 5, {"a": "b=c", "d": "e"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--steps", "0"], "--steps is 0; it must be >= 1"), (["--data", "folder"], r"each entry must be TABLE=FOLDER")],
)
def test_wrong_arguments_are_refused(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reproduce.parse(["sine", *wrong])
    assert message in capsys.readouterr().err


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["omniglott"]) == 2
    assert "no table is named 'omniglott'; there are: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint", "done", "finished"),
    [
        ("last", 600, True),
        ("last", 599, False),
        ("last = best", 599, False),
        ("best", 400, True),
        ("best, pretrained", 9, False),
    ],
)
def test_a_cell_that_is_not_at_its_full_length_has_a_command(checkpoint: str, done: int, finished: bool) -> None:
    row: Any = SimpleNamespace(cell="maml/sine_10shot", seed=2, checkpoint=checkpoint, steps_done=done, steps_asked=600)
    command = "python experiments/reproduce.py all --cells maml/sine_10shot --seeds 2 --train"
    assert reproduce.to_finish(row, {}) == ("" if finished else command)
    if not finished:
        roots = {"omniglot": "data/omniglot", "mini_imagenet": "my data"}
        assert reproduce.to_finish(row, roots) == command + " --data omniglot=data/omniglot 'mini_imagenet=my data'"
