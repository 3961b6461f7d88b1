"""The table of experiments/uncertainty.py, from a run directory made in a blink."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from mamllit.backbones import MLP
from mamllit.methods import MTNet
from mamllit.objectives import Regression

SCRIPT = Path(__file__).parents[2] / "experiments" / "uncertainty.py"


def test_a_run_becomes_a_row_and_two_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = MTNet(MLP(1, [6], 1), Regression(), 0.01, 1, "mean")
    backbone = {"class_path": "mamllit.backbones.MLP", "init_args": {"in_features": 1, "hidden": [6], "out_features": 1}}
    arguments = {"backbone": backbone, "objective": {"class_path": "mamllit.objectives.Regression"}}
    arguments |= {"inner_lr": 0.01, "inner_steps": 1, "reduction": "mean"}
    config = {
        "model": {"method": {"class_path": "mamllit.methods.MTNet", "init_args": arguments}, "report_step": 1},
        "data": {"class_path": "mamllit.data.SineLineDataModule", "init_args": {"standard_queries": 20}},
    }
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    weights = {f"method.{name}": value for name, value in method.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "checkpoints" / "last.ckpt")

    spec = importlib.util.spec_from_file_location("uncertainty_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(tmp_path), "--noise", "0.3", "--tasks", "6"])

    last = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells[:3] == ["MTNet", str(tmp_path), "6"]
    assert len(cells) == 9
    assert all(float(cell.rstrip("%")) >= 0 for cell in cells[3:])
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["masks.png", "samples.png"]
