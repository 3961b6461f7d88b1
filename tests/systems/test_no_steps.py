"""A fit of no steps: methods that learn nothing over tasks are tested as they are, or with another run's features."""

from pathlib import Path

import pytest
import torch
from cli_runs import QUIET, result

from mamllit import cli
from mamllit.backbones import Conv4

pytestmark = QUIET
NEAREST = """
trainer: {default_root_dir: ROOT, max_steps: 0, val_check_interval: 1, accelerator: cpu, logger: false}
model:
  method:
    class_path: mamllit.methods.NearestNeighbour
    init_args:
      backbone: BACKBONE
      objective: mamllit.objectives.Classification
  eval_steps: 0
  report_step: 0
data: {class_path: toy_images.ToyImages}
"""
CONV = (
    "{class_path: mamllit.backbones.Conv4, "
    "init_args: {in_channels: 1, filters: 8, out_features: null, image_size: 8, downsample: stride}}"
)


@pytest.mark.parametrize("pixels", [True, False])
def test_a_fit_of_no_steps_tests_what_it_began_with(pixels: bool, tmp_path: Path) -> None:
    file, begun = tmp_path / "cell.yaml", tmp_path / "features.ckpt"
    text = NEAREST.replace("ROOT", str(tmp_path / "runs"))
    file.write_text(text.replace("BACKBONE", "torch.nn.Identity" if pixels else CONV))
    features = Conv4(1, 8, None, 8, "stride")
    state = {f"method.backbone.{name}": value for name, value in features.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 70}, begun)
    done = cli.run(["fit", "-c", str(file), *([] if pixels else ["--init_from", str(begun)])])
    found = result(tmp_path / "runs" / "seed_0")
    assert found["results"]["standard[5]"]["mean"][0] > 1 / 3 if pixels else "standard[5]" in found["results"]
    if pixels:
        assert "fit" not in found
    else:
        assert found["fit"]["started_from"] == {"name": str(begun), "steps_done": 70, "seed": None}
        assert all(torch.equal(done.model.state_dict()[name], value) for name, value in state.items())


def test_training_where_there_is_nothing_to_train_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cell.yaml"
    text = NEAREST.replace("ROOT", str(tmp_path / "runs")).replace("BACKBONE", "torch.nn.Identity")
    file.write_text(text.replace("max_steps: 0", "max_steps: 2"))
    with pytest.raises(
        ValueError, match=r"NearestNeighbour has nothing to train here, but trainer\.max_steps is 2; set it to 0"
    ):
        cli.run(["fit", "-c", str(file)])
