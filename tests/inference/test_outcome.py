"""What an adaptation found: what follows from its probabilities, and its table."""

import csv
from pathlib import Path

import torch

from mamllit.inference.outcome import Outcome


def test_the_table_has_prediction_doubt_and_reason(tmp_path: Path) -> None:
    found = Outcome(
        classes=("a", "b"),
        support=(Path("s/a/0.png"), Path("s/b/0.png")),
        support_labels=torch.tensor([0, 1]),
        query=(tmp_path / "q/a/1.png", tmp_path / "q/2.png"),
        probabilities=torch.tensor([[0.8, 0.2], [0.45, 0.55]]),
        nearest=torch.tensor([0, 1]),
        truth=("a", None),
        head="logistic",
        features="timm:x",
        seconds=1.0,
        unsure_below=0.6,
        root=tmp_path / "q",
    )
    found.write_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0].values()) == ["a/1.png", "a", "a", "", "s/a/0.png", "0.800000", "0.200000"]
    assert list(rows[1].values()) == ["2.png", "b", "", "unsure", "s/b/0.png", "0.450000", "0.550000"]
    assert (found.predicted.tolist(), found.hits, found.chance) == ([0, 1], (1, 1), 0.5)
