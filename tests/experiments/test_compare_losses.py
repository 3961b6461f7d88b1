"""experiments/compare_losses.py: what it runs in a repository, what it reads of that, and when two recordings differ."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import compare_losses
from compare_losses import EXPERIMENTS, Experiment, compare, differences, losses_of, main, record, tolerance

# stands for a repository: logs the losses 3, 2, 1, ... in the wrong order, and keeps what it was asked for
RUN = """
import json, pathlib, sys
asked = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
pathlib.Path("asked.json").write_text(json.dumps(asked))
if "sgd" in asked["config"]:
    sys.exit("no such cell")
steps = int(asked["trainer.max_steps"]) - ("bmaml" in asked["config"])
rows = [f"{step},{3 - step}.5,\\n" for step in reversed(range(steps))]
folder = pathlib.Path(asked["trainer.default_root_dir"], "seed_0", "csv")
folder.mkdir(parents=True)
(folder / "metrics.csv").write_text("step,train/meta_loss,val/mse\\n" + "".join(rows) + "9,,0.5\\n")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "run.py").write_text(RUN)
    return tmp_path


def test_a_recording_holds_each_steps_loss_in_order(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = losses_of(Experiment("maml/omniglot_5way_1shot", True, 2, "omniglot"), repository, 50, {"omniglot": repository})
    assert found == [3.5, 2.5]
    asked = json.loads((repository / "asked.json").read_text())
    assert asked["config"] == "experiments/maml/omniglot_5way_1shot.yaml"
    assert asked["model.compile"] == "true" and asked["data.root"] == str(repository) and asked["threads"] == "1"


def test_what_fails_or_logs_too_little_is_told(repository: Path) -> None:
    with pytest.raises(RuntimeError, match=r"meta_sgd/sine_10shot failed with exit code 1:\nno such cell"):
        losses_of(Experiment("meta_sgd/sine_10shot"), repository, 3, {})
    with pytest.raises(RuntimeError, match=r"bmaml/sine_10shot logged 2 meta-losses in 3 steps; it must log each"):
        losses_of(Experiment("bmaml/sine_10shot"), repository, 3, {})


def test_record_goes_on_where_it_was_and_reports_failures(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = repository / "out.json"
    out.write_text(json.dumps({"losses": {"maml/sine_10shot": [1.0]}}))
    assert record(out, repository, 2, {"omniglot": None, "mini_imagenet": None}) == 1  # two of them fail, see RUN
    losses = json.loads(out.read_text())["losses"]
    assert losses["maml/sine_10shot"] == [1.0] and losses["mt_net/sine_10shot"] == [3.5, 2.5]
    assert "meta_sgd/sine_10shot" not in losses
    told = capsys.readouterr()
    assert "maml/omniglot_20way_1shot: left out; give the folder of its images by --omniglot" in told.out
    assert "bmaml/sine_10shot logged 1 meta-losses in 2 steps" in told.err


def test_every_cell_that_is_recorded_exists() -> None:
    cells = Path(compare_losses.__file__).parent
    assert [e.cell for e in EXPERIMENTS if not (cells / f"{e.cell}.yaml").exists()] == []


def leave(file: Path, **losses: list[float]) -> Path:
    file.write_text(json.dumps({"commit": file.stem, "losses": losses}))
    return file


def test_rounding_is_no_difference_and_more_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images may drift apart after three steps, sine may not."""
    drift = [2.0, 2.0, 2.0 + 1e-6, 2.001, 2.2]
    before = leave(tmp_path / "a.json", maml=[2.0] * 5, sine=[1.0])
    assert main(["compare", str(before), str(leave(tmp_path / "b.json", maml=drift, sine=[1.0 + 1e-6, 5.0]))]) == 0
    assert "maml: same" in capsys.readouterr().out
    assert compare(before, leave(tmp_path / "c.json", maml=[2.0, 2.001, 2.0, 2.0, 2.0], sine=[1.0])) == 1
    assert "maml: DIFFERS from step 1 on" in capsys.readouterr().out
    assert compare(before, leave(tmp_path / "d.json", maml=[2.0, 2.0, 2.0, 2.0, 3.0], sine=[1.0])) == 1
    assert "maml: DIFFERS from step 4 on" in capsys.readouterr().out
    assert tolerance("maml/sine_10shot", 40) < 1e-4 < tolerance("maml/omniglot_5way_1shot", 40)
    assert compare(before, leave(tmp_path / "e.json", maml=[2.0] * 5)) == 1
    assert f"sine: not in {tmp_path / 'e.json'}" in capsys.readouterr().out


def test_a_loss_that_is_no_number_differs() -> None:
    assert differences([1.0, float("nan")], [1.0, 1.0]) == [0.0, float("inf")]
    assert differences([2.0, 0.0], [1.0, 0.0]) == [0.5, 0.0]


def test_no_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", "out.json", "--steps", "0"])
    assert "--steps is 0; it must be >= 1" in capsys.readouterr().err
