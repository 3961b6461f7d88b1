"""The tables of the documentation: each is what the data say, and nothing that was not run looks as if it had been."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
import returns_picture  # noqa: E402
import tables  # noqa: E402
from tabled import data, minutes, others, paper, results  # noqa: E402


def test_every_table_is_what_the_data_say() -> None:
    documents = tables.documents()
    assert {"README.md", "docs/experiments.md", "docs/speed.md"} <= {
        path.relative_to(REPOSITORY).as_posix() for path in documents
    }
    stale = [str(path) for path in documents if tables.rewritten(path) != path.read_text(encoding="utf-8")]
    assert not stale, f"run `python experiments/tables.py`: {stale}"


def test_every_result_belongs_to_an_experiment_and_a_seed() -> None:
    for path in data.RESULTS.rglob("seed_*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.relative_to(data.RESULTS).as_posix()
        assert (record["cell"], f"seed_{record['seed']}") == (name, path.stem)
        assert (REPOSITORY / "experiments" / f"{name}.yaml").is_file()
        assert record["results"]
        assert record["commit"]
        assert not (record.get("started_from") or {"name": ""})["name"].startswith("/")


def test_the_picture_of_returns_is_drawn_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = returns_picture.picture().axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    record = json.loads((data.RESULTS / "rl/navigation_maml/seed_0.json").read_text(encoding="utf-8"))
    lines = {name: line[0].get_ydata().tolist() for name, line in zip(returns_picture.measured(), axes.containers, strict=True)}
    assert lines["MAML"] == pytest.approx(record["results"]["paper/40-shot"]["mean"], rel=1e-6)
    assert {*lines, "MAML, published"} == set(names)
    assert [float(value) for value in axes.lines[-1].get_ydata()] == [-40.41, -11.68, -3.33, -3.23, -3.35]
    monkeypatch.setattr(sys, "argv", ["returns_picture.py", "--out", str(tmp_path / "returns.png")])
    returns_picture.main()
    assert (tmp_path / "returns.png").read_bytes()[1:4] == b"PNG"


def test_the_papers_table_has_each_of_its_numbers_and_says_what_was_not_run() -> None:
    rows = [line.strip("| ").split(" | ") for line in paper.table_one().splitlines()[2:]]
    assert len(rows) == sum(map(len, paper.NUMBERS.values())) == 2 + 2 + 5 * 4 + 6 * 2
    known = {cell.name for cell in data.cells()}
    for row, (_, _, experiment, _) in zip(
        rows, [number for numbers in paper.NUMBERS.values() for number in numbers], strict=True
    ):
        assert row[1].endswith(f"(experiments/{experiment}.yaml)")
        assert (row[4] == "not run") == (experiment not in known), row
    maml = next(
        row for row in rows if row[:2] == ["Omniglot, 5-way 1-shot", "[MAML](experiments/maml/omniglot_5way_1shot.yaml)"]
    )
    assert maml[2:6] == ["98.7 ± 0.4%", "99.4%", "99.0 ± 0.4%", "60,000 / 60,000"]
    mann = [row for row in rows if row[1] == "[MANN, no convolution](experiments/mann/omniglot_5way.yaml)"]
    assert [row[2:4] for row in mann] == [["82.8%", "88.8%"], ["94.9%", "97.3%"]]  # of the 2nd and the 5th image of a class
    shown = [row[3] for row in rows if row[3]]
    assert shown == [f"{value}%" for values in paper.INDEPENDENT.values() for value in values if value]


def test_plain_loops_are_listed_once_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "RESULTS", tmp_path)
    assert others.plain_loops() == "Not measured yet.\n"
    (folder := tmp_path / "speed" / "here").mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({"processor": "one core", "commit": "0123456789"}))
    names = [f"{kind}_ratio_{which}" for kind in ("clock", "cpu") for which in ("median", "min", "max")]
    columns = ["system", "cell", "threads", "mamllit_clock", *names]
    (folder / "plain_loops.csv").write_text(f"{','.join(columns)}\nMANN,mann/five,1,0.25,2,1,3,12,11,13\n")
    expected = "| one core, `0123456` | MANN, `mann/five` | 1 | 250 ms | 2.00 (1.00 to 3.00) | 12.0 (11.0 to 13.0) |"
    assert others.plain_loops().splitlines()[-1] == expected
    assert len(others.speed().splitlines()) == 2  # no row of what has no steps.csv


def test_metric_loops_are_listed_once_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "RESULTS", tmp_path)
    assert others.metric_loops() == "Not measured yet.\n"
    (folder := tmp_path / "speed" / "here").mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({"processor": "one core", "commit": "0123456789"}))
    ratios = [f"{kind}_ratio_{which}" for kind in ("clock", "cpu") for which in ("median", "min", "max")]
    lines = [",".join(["row", "competitor", "threads", "images_per_second", *ratios])]
    lines += ["toy,mamllit,1,250.4,1,1,1,1,1,1", "toy,plain PyTorch,1,125.2,2,1,3,12,11,13"]
    (folder / "metric_loops.csv").write_text("\n".join(lines) + "\n")
    *_, plain, _, absent = others.metric_loops().splitlines()
    begins = "| one core, `0123456` | `toy` | 1 | 250 |"
    assert plain == f"{begins} plain PyTorch | 125 | 2.00 (1.00 to 3.00) | 12.0 (11.0 to 13.0) |"
    assert absent == f"{begins} learn2learn | not installed |  |  |"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one experiment of 100 iterations and a README with its table."""
    (tmp_path / "experiments/maml").mkdir(parents=True)
    (tmp_path / "experiments/maml/toy.yaml").write_text(
        "# MAML, toys.\ntrainer: {max_steps: 100}\nmodel: {init_args: {report_step: 1}}\n"
        "results: {published: {paper: {1: 0.5}}, published_ci95: {paper: {1: 0.0004}}}\n"
    )
    (tmp_path / "README.md").write_text("a\n<!-- table: finished -->\nold\n<!-- end of table -->\nb\n")
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "RESULTS", tmp_path / "experiments/results")
    data.cells.cache_clear()
    yield tmp_path
    data.cells.cache_clear()


def put(place: Path, seed: int, mean: Any, **changes: Any) -> None:
    entry = {"protocol": "paper", "batch_norm": "transductive", "shots": 1, "queries": 1, "episodes": 600}
    record = {
        "cell": "maml/toy", "seed": seed, "metric": "accuracy", "steps_done": 100, "changed": {}, "commit": "0123456789",
        "results": {"paper": {**entry, "mean": [0.2, mean], "ci95": [0.01, 0.02]}}, **changes,
    }  # fmt: skip
    path = place / f"experiments/results/maml/toy/seed_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    data.cells.cache_clear()


def test_a_finished_run_has_its_row(place: Path) -> None:
    put(place, 0, 0.6155)
    text = tables.rewritten(place / "README.md")
    row = "| [MAML, toys](experiments/maml/toy.yaml) | 100 | 1 | 61.6 ± 2.0% | 50.00 ± 0.04% | 1 |"
    assert row in text.splitlines()
    assert text.startswith("a\n<!-- table: finished -->\n") and text.endswith("<!-- end of table -->\nb\n")
    assert "old" not in text
    (place / "docs").mkdir()
    (place / "docs/page.md").write_text((place / "README.md").read_text())
    assert "[MAML, toys](../experiments/maml/toy.yaml)" in tables.rewritten(place / "docs/page.md")


def test_several_seeds_have_a_mean_with_the_least_and_the_largest(place: Path) -> None:
    for seed, mean in enumerate((0.6, 0.7, 0.8)):
        put(place, seed, mean)
    assert "| 70.0% (60.0 to 80.0) | 50.00 ± 0.04% | 3 |" in results.finished()


@pytest.mark.parametrize("change", [{"steps_done": 99}, {"changed": {"model.lr": {"experiment": 1, "run": 2}}}])
def test_a_shorter_run_or_another_setting_is_never_among_the_finished(place: Path, change: dict) -> None:
    put(place, 0, 0.6, **change)
    assert "toy" not in results.finished()
    assert "toy" not in results.images()
    row = results.begun().splitlines()[-1]
    assert row.startswith(f"| `maml/toy` | **{change.get('steps_done', 100)} / 100** | 1 | 60.0 ± 2.0% |")
    assert row.endswith("| `model.lr` |" if "changed" in change else "|  |")


def test_the_best_checkpoint_of_a_finished_run_is_said_to_be_one(place: Path) -> None:
    put(place, 0, 0.6, steps_done=40, of_steps=100, checkpoint="best")
    assert "| 100, best on meta-val at 40 | 1 | 60.0 ± 2.0% |" in results.finished()


def test_only_the_seeds_that_are_finished_count(place: Path) -> None:
    put(place, 0, 0.6)
    put(place, 1, 0.9, steps_done=50)
    assert "| 60.0 ± 2.0% | 50.00 ± 0.04% | 1 |" in results.finished()


def test_errors_that_are_no_number_are_printed_as_such(place: Path) -> None:
    assert data.number("mse", "inf") == "inf"
    assert data.number("mse", 0.3433) == "0.343"
    assert data.number("mse", None) == ""


def test_an_unknown_table_is_refused(place: Path) -> None:
    (place / "README.md").write_text("<!-- table: nonsense -->\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match=r"^README\.md asks for the table 'nonsense'; the tables are: methods, finished, "):
        tables.rewritten(place / "README.md")


@pytest.mark.slow
def test_the_command_checks() -> None:
    done = subprocess.run(
        [sys.executable, "experiments/tables.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_minutes_count_the_pre_training_too() -> None:
    shown = {point.cell: point for point in minutes.points() if point.task == "mini-ImageNet, 5-way 1-shot"}
    records = {cell.name: cell.first for cell in data.cells()}
    recipe = "recipes/mini_imagenet_5way_1shot"
    cosine, linear = "pretrain/mini_imagenet_conv4_32_cosine", "pretrain/mini_imagenet_conv4_32"
    assert records[cosine]["started_from"]["name"].startswith(f"runs/{linear}/")
    assert shown[cosine].minutes == pytest.approx((records[cosine]["seconds"] + records[linear]["seconds"]) / 60)
    assert records[recipe]["started_from"]["name"] == cosine.replace("/", "_")  # which comes with mamllit
    assert shown[recipe].minutes == pytest.approx(records[recipe]["seconds"] / 60 + shown[cosine].minutes)
    assert shown[recipe].accuracy[0] == records[recipe]["results"]["paper"]["mean"][10]
    with pytest.raises(ValueError, match=r"runs/lost/seed_0/checkpoints/last.ckpt is of no run in .*: file that one first"):
        minutes._before({"name": "runs/lost/seed_0/checkpoints/last.ckpt"})
