"""What a tracker is told of a run: its id, its tags, and how it differs from the experiment's file."""

from pathlib import Path

import pytest

from mamllit.runs import tracking

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_directory_keeps_its_id(tmp_path: Path) -> None:
    first = tracking.run_id(tmp_path / "a")
    assert first == tracking.run_id(tmp_path / "a")
    assert first != tracking.run_id(tmp_path / "b")
    assert len(first) == 8


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"../../elsewhere", b"a b", b"x" * 200])
def test_a_damaged_id_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / tracking.ID_FILE).write_bytes(content)
    with pytest.warns(UserWarning, match=r"wandb_run_id holds .*, which is not a W&B id; the run gets a new one$"):
        made = tracking.run_id(tmp_path)
    assert len(made) == 8
    assert (tmp_path / tracking.ID_FILE).read_text() == made


def test_only_the_first_rank_writes_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.rank_zero_only, "rank", 1, raising=False)
    tracking.run_id(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_id_from_outside_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tracking.run_id(tmp_path)
    assert tracking.sweep_suffix() == ""
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert tracking.run_id(tmp_path) == "trial7"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert tracking.sweep_suffix() == "_trial7"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert tracking.run_id(tmp_path) == known


def test_tags() -> None:
    method = {"class_path": "mamllit.methods.MAML", "init_args": {"first_order": True}}
    data = {"class_path": "mamllit.data.OmniglotDataModule", "init_args": {"ways": 5, "shots": 1}}
    assert tracking.tags(method, data, 3) == ["MAML", "Omniglot", "5-way", "1-shot", "first order", "seed 3"]
    assert tracking.tags({"class_path": "a.Prototypes"}, {"class_path": "b.Own"}, 0) == ["Prototypes", "Own", "seed 0"]
    assert tracking.tags(method, data, None)[-1] == "no seed"


def test_the_experiment_is_the_file_with_a_paper(tmp_path: Path) -> None:
    sine, small = ROOT / "experiments/maml/sine_10shot.yaml", ROOT / "tests/small.yaml"
    assert tracking.cell([small, sine]) == sine
    assert tracking.cell([small, tmp_path / "missing.yaml"]) is None


def test_the_header_in_parts() -> None:
    found = tracking.header(ROOT / "experiments/maml/sine_10shot.yaml")
    assert list(found) == ["title", "paper", "departures"]
    assert found["title"] == "MAML, sine regression, 10-shot."
    assert found["paper"].startswith("Finn, Abbeel & Levine 2017, section 5.1")
    assert found["departures"].endswith("as in the paper's text (the authors' command: 0.001).")


def test_changes_by_dotted_names_without_where_a_run_lands() -> None:
    before = {
        "model": {"inner_lr": 0.1, "steps": [1, 2]},
        "trainer": {"default_root_dir": "a", "max_steps": 5},
        "wandb": "offline",
    }
    now = {"model": {"inner_lr": 0.2, "steps": [1, 2], "new": None}, "trainer": {"default_root_dir": "b"}, "wandb": "online"}
    assert tracking.changes(before, now) == {
        "model.inner_lr": {"experiment": 0.1, "run": 0.2},
        "trainer.max_steps": {"experiment": 5, "run": None},
    }


def test_a_run_without_an_experiment_s_file_is_described_all_the_same() -> None:
    assert tracking.describe("maml/own", 2, None, None, {}) == {"table": "maml", "cell": "own", "seed": 2}
