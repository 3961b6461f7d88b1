"""A method with a memory under `MetaLearner`: streams in training and validation, streams and episodes in a test."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from short_fits import make_trainer
from torch import nn
from toy_streams import ToyStreams

from mamllit.callbacks import AdaptationFigures, ResultWriter
from mamllit.methods import MANN
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")


def learner() -> MetaLearner:
    torch.manual_seed(0)
    method = MANN(nn.Identity(), Classification(), features=64, ways=3, hidden=8, slots=8, width=4, heads=2)
    return MetaLearner(method, eval_steps=3, report_step=1, log_every=1)


def trained(steps: int, folder: Path, checkpoint: str | None = None, **changes: Any) -> tuple[MetaLearner, Any]:
    writer = ResultWriter(published={"stream[4]": {1: 0.5}}, table_steps=(0, 1, 3))
    kept = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    model, data = learner(), ToyStreams()
    trainer = make_trainer(
        steps, callbacks=[writer, kept, AdaptationFigures()], enable_checkpointing=True, default_root_dir=folder,
        limit_val_batches=1.0, val_check_interval=2, num_sanity_val_steps=0, **changes,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model, trainer


def test_it_trains_resumes_to_the_bit_and_reports_by_presentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, trainer = trained(4, tmp_path / "whole")
    resumed, _ = trained(4, tmp_path / "rest", str(tmp_path / "whole" / "step=2.ckpt"))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.summaries["val"].mean.shape == (4,)
    trainer.test(whole, ToyStreams(), verbose=False)
    assert {name: summary.mean.shape for name, summary in whole.summaries.items()} == {
        "val": (4,), "stream[4]": (4,), "standard[5]/1-shot": (1,), "standard[5]/2-shot": (1,),
    }  # fmt: skip
    writer = trainer.callbacks[0]
    console = Console(width=140, record=True)
    console.print(writer.table(whole))
    text = console.export_text()
    assert "accuracy on meta-test after n earlier examples of the class" in text
    assert "(4 x 12 images)" in text
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[3:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    headings = next(line for line in text.splitlines() if "meta-test episodes" in line)
    assert [cell.strip() for cell in headings.split("┃")[3:-1]] == ["0", "1", "2", "3"]
    assert [cell != "" for cell in rows["standard[5]/1-shot"]] == [False, True, False, False]  # one example of each was shown
    assert [cell != "" for cell in rows["standard[5]/2-shot"]] == [False, False, True, False]
    assert "published" in text
    figures = next(callback for callback in trainer.callbacks if isinstance(callback, AdaptationFigures))
    (axes,) = figures.draw(whole, trainer.datamodule, "")["learning_curve"].axes
    assert [list(line[0].get_xdata()) for line in axes.containers] == [[0, 1, 2, 3], [1], [2]]
    assert {path.name for path in (tmp_path / "whole" / "figures").iterdir()} >= {"stream.png", "learning_curve.png"}
