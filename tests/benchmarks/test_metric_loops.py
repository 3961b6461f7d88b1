"""experiments/benchmarks/metric_loops.py: the peers make mamllit's step, and the script runs; no time is judged here."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import metric_loops  # noqa: E402
import suite.metric_loops as loops  # noqa: E402
from suite.peers.cell import method_of  # noqa: E402
from suite.plain_loops import batch_of  # noqa: E402

ROW = "mini-30w1s-4q"


def small() -> dict[str, Any]:
    """The YAML's document with a network and data that take milliseconds."""
    document = metric_loops.document_of(ROW)
    document["data"]["init_args"] |= {"train_ways": 3, "shots": 2, "image_size": 16}
    document["model"]["init_args"]["compile"] = False
    document["model"]["init_args"]["method"]["init_args"]["backbone"]["init_args"] |= {"filters": 3, "image_size": 16}
    return document


def test_rows_have_the_papers_sizes() -> None:
    for row, images in (("omniglot-60w1s", 360), (ROW, 150)):
        document = metric_loops.document_of(row)
        assert sum(part.y.numel() for part in batch_of(document)) == images
        assert method_of(document).backbone.convs[3].weight.shape == (64, 64, 3, 3)


def test_those_that_are_said_to_make_the_same_step_do() -> None:
    document = small()
    found = loops.check(document)
    assert {"plain PyTorch"} <= set(found) <= set(loops.SAME)
    assert max(found.values()) < 1e-9
    team, _ = loops.competitors(document, torch.float64)
    before = [value.clone() for value in team["mamllit"].method.parameters()]
    assert team["mamllit"](batch_of(document, torch.float64)) > 0
    assert not torch.equal(before[0], next(team["mamllit"].method.parameters()))  # and it is a step


def test_another_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(loops.Plain):
        def backward(self, batch: Any) -> torch.Tensor:
            return 2 * super().backward(batch)

    monkeypatch.setitem(loops.PEERS, "plain PyTorch", Other)
    with pytest.raises(ValueError, match="the step of plain PyTorch differs from mamllit's by 1 of the loss or the weights"):
        loops.check(small())


def test_easyfsl_takes_the_distance_itself_and_two_passes() -> None:
    pytest.importorskip("easyfsl", reason="needs easyfsl")
    document = small()
    team, _ = loops.competitors(document, torch.float64)
    batch = batch_of(document, torch.float64)
    support, query = (part.x[0] for part in batch)
    net = loops.ordinary(method_of(document).double().backbone)
    means = net(support).unflatten(0, (3, 2)).mean(1)
    torch.testing.assert_close(
        team["easyfsl"](batch), F.cross_entropy(-torch.cdist(net(query), means), batch.query.y[0]).detach()
    )


@pytest.mark.slow
def test_the_script_runs_without_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Missing(loops.EasyFSL):
        def __init__(self, *arguments: Any) -> None:
            raise ImportError("No module named 'easyfsl'")

    document = small()
    monkeypatch.setitem(loops.PEERS, "easyfsl", Missing)
    monkeypatch.setattr(metric_loops, "document_of", lambda row: document)
    threads = str(torch.get_num_threads())
    metric_loops.main(["--rows", ROW, "--rounds", "2", "--seconds", "0.01", "--threads", threads, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"{ROW}: easyfsl is not installed, and left out" in printed
    with (tmp_path / "metric_loops.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [record["competitor"] for record in records][:2] == ["mamllit", "plain PyTorch"]
    assert "easyfsl" not in {record["competitor"] for record in records}
    assert list(records[0]) == metric_loops.COLUMNS
    assert records[0]["clock_ratio_median"] == "1.0"
    assert float(records[1]["error_float64"]) <= loops.ROUNDING
    assert float(records[1]["clock_ratio_min"]) <= float(records[1]["clock_ratio_median"])
    assert "easyfsl" in json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
