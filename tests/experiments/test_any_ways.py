"""A checkpoint of a headless method at other numbers of classes: measured, gone on with, and refused where it has a head."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mamllit.backbones import Conv4
from mamllit.methods import MAML
from mamllit.objectives import Classification
from mamllit.pretrained.files import Checkpoint, write

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import any_ways
from tabled import data as tabled_data
from tabled import others


def checkpoint(folder: Path, head: str) -> Path:
    """An untrained network, as `mamllit export` writes one, for squares of 21 grey levels in 21 classes."""
    for level in range(21):
        for number in range(4):
            file = folder / "images" / f"level{level}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 12 * level + number).save(file)
    sizes: dict[str, Any] = {"in_channels": 1, "filters": 4, "out_features": 5 if head == "learned" else None, "image_size": 16}
    method = {
        "class_path": "mamllit.methods.MAML",
        "init_args": {
            "backbone": {"class_path": "mamllit.backbones.Conv4", "init_args": {**sizes, "downsample": "stride"}},
            "objective": {"class_path": "mamllit.objectives.Classification"},
            "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean", "head": head,
        },
    }  # fmt: skip
    data = {
        "class_path": "mamllit.data.ImageFolderDataModule",
        "init_args": {"image_size": 16, "channels": 1, "shots": 1, "queries": 1, "split_ratios": [0.33, 0.33, 0.34], "seed": 0},
    }
    torch.manual_seed(0)
    net = MAML(Conv4(**sizes, downsample="stride"), Classification(), 0.1, 1, "mean", head=head)  # type: ignore[arg-type]
    model = {"method": method, "report_step": 2}
    write(path := folder / f"{head}.safetensors", Checkpoint(head, model, data, {"results": {}}), dict(net.state_dict()))
    return path


def test_three_and_seven_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path, "zero"), tmp_path / "any_ways" / "zero.json"
    words = [str(path), "--root", str(tmp_path / "images"), "--episodes", "12", "--out", str(out)]
    any_ways.main([*words, "--ways", "7"])
    first = json.loads(out.read_text())["rows"]
    any_ways.main([*words, "--ways", "3", "7"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["ways"] for row in rows] == [3, 7] and rows[1:] == first, "7 ways were not measured again"
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if " ways: " in line] == [
        "7 ways",
        "3 ways",
    ]
    for row in rows:
        assert (row["episodes"], row["steps"], row["shots"], row["queries"]) == (12, 2, 1, 1)
        assert all(0 <= value["mean"] <= 1 for value in row["accuracy"].values())
    monkeypatch.setattr(tabled_data, "RESULTS", tmp_path)
    assert "| `zero` | 3 | 33.3% |" in others.any_ways() and "| `zero` | 7 | 14.3% |" in others.any_ways()


def test_mistakes_are_said_in_a_line_and_results_of_another_checkpoint_stay(tmp_path: Path) -> None:
    path, out = checkpoint(tmp_path, "zero"), tmp_path / "other.json"
    out.write_text(kept := json.dumps({"checkpoint": "other", "rows": []}))
    words = ["--root", str(tmp_path / "images"), "--episodes", "4", "--ways"]
    for arguments, text in (
        ([str(path), *words, "3", "--out", str(out)], "other.json holds the results of other, not of zero; name another file"),
        ([str(path), *words, "1"], "ways is 1; an episode needs at least 2 classes"),
        (["nothing", *words, "3"], "no checkpoint is named 'nothing'"),
    ):
        with pytest.raises(SystemExit, match=text):
            any_ways.main(arguments)
    assert out.read_text() == kept


def test_a_learned_head_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "learned")
    with pytest.raises(ValueError, match=r"learned has a learned head, .* take one with head: zero or shared"):
        any_ways.measure(str(path), tmp_path / "images", 3, 4)
    with pytest.raises(ValueError, match=r"rl_navigation_maml_ratio has a learned head|was trained on a ControlDataModule"):
        any_ways.measure("rl_navigation_maml_ratio", tmp_path, 3, 4)
