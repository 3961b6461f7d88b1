"""experiments/benchmarks/plain_loops.py: each plain loop makes mamllit's step, and the script runs; no time is judged here."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import plain_loops  # noqa: E402
from suite.peers.cell import method_of  # noqa: E402
from suite.plain_loops import PAIRS, PlainStatistician, batch_of, noise_of, plainly  # noqa: E402

from mamllit.core.episode import Episode  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "MANN": {"features": 64, "ways": 3, "hidden": 8, "slots": 8, "width": 4, "heads": 2},
    "memory module": {"features": 5, "keep": 1.0, "neighbours": 6},
    "neural statistician": {"features": 4096, "code": 2, "context": 3, "hidden": 6, "keep": 1.0, "dilate": 0.0},
    "meta-learner LSTM": {"inner_steps": 2, "hidden": 4},
}


def small(system: str) -> dict[str, Any]:
    """The YAML's document with a method and data that take milliseconds."""
    document = plain_loops.document_of(system)
    model, data = document["model"]["init_args"], document["data"]["init_args"]
    arguments = model["method"]["init_args"] | SMALL[system]
    model |= {"method": model["method"] | {"init_args": arguments}, "compile": False}
    if system == "MANN":
        data |= {"ways": 3, "length": 9, "image_size": 8, "meta_batch_size": 2}
    elif system == "memory module":
        model |= {"streams": 3, "ways": 2, "slots": 10, "age_noise": 0}
        data |= {"ways": 2, "image_size": 8, "meta_batch_size": 3}
        arguments["backbone"]["init_args"] |= {"image_size": 8, "filters": 2, "features": 5}
    elif system == "neural statistician":
        data |= {"train_ways": 2, "queries": 1}
        net = {"class_path": "mamllit.backbones.MLP", "init_args": {"in_features": 784, "hidden": [5], "out_features": 4}}
        decoder = {"class_path": "mamllit.backbones.MLP", "init_args": {"in_features": 5, "hidden": [5], "out_features": 784}}
        arguments |= {"backbone": net, "decoder": decoder, "features": 4}
    else:
        data |= {"ways": 2, "queries": 1, "image_size": 16}
        arguments["backbone"]["init_args"] |= {"filters": 2, "out_features": 2, "image_size": 16}
    return document


@pytest.mark.parametrize("system", PAIRS)
def test_both_make_the_same_steps(system: str) -> None:
    """In double precision: the losses of three steps, and the weights after them."""
    document = small(system)
    _, own, loop = PAIRS[system]
    method, plain = method_of(document).double(), method_of(plainly(document)).double()
    plain.load_state_dict(method.state_dict())
    batch = batch_of(document, torch.float64)
    one, other = own(method, document), loop(plain, document)
    if isinstance(other, PlainStatistician):
        assert isinstance(batch, Episode)
        other.normals = noise_of(other.method, batch)
    for place in range(3):
        batch = batch._replace(place=place) if system == "memory module" else batch
        torch.testing.assert_close(one(batch), other(batch), rtol=1e-6, atol=1e-9)
    begun = dict(method.named_parameters())
    assert any(not torch.equal(value, begun[name]) for name, value in one.method.named_parameters())
    for (name, value), expected in zip(one.method.named_parameters(), other.trained, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=name)


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = small("MANN")
    monkeypatch.setattr(plain_loops, "document_of", lambda system: document)
    threads = str(torch.get_num_threads())
    plain_loops.main(["--systems", "MANN", "--rounds", "2", "--seconds", "0.01", "--threads", threads, "--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("MANN: mamllit ")
    with (tmp_path / "plain_loops.csv").open(encoding="utf-8") as file:
        (record,) = csv.DictReader(file)
    assert list(record) == plain_loops.COLUMNS
    assert float(record["clock_ratio_min"]) <= float(record["clock_ratio_median"]) <= float(record["clock_ratio_max"])
    assert (tmp_path / "facts.json").exists()
