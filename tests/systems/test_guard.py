"""A meta-loss that is not finite: the run stops and says where, or leaves that step out; the state from before is kept."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mamllit import cli
from mamllit.data import SineDataModule
from mamllit.methods import MAML
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner
from mamllit.systems.guard import NonFiniteMetaLoss, finite

REPOSITORY = Path(__file__).parents[2]
SPOILT = 27  # in the meta-batch of step 7: four episodes each, from 0

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mamllit"])


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let episode SPOILT of the training stream have a target that is not a number."""
    build = SineDataModule.build

    def with_nan(self: Any, drawn: Any) -> Any:
        batch = build(self, drawn)
        if self.trainer is not None and self.trainer.training:
            batch.episodes.query.y[batch.number == SPOILT] = float("nan")
        return batch

    monkeypatch.setattr(SineDataModule, "build", with_nan)
    return monkeypatch


def fit(root: Path, *more: str) -> cli.MamllitCLI:
    files = ["-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml")]
    options = ["--trainer.max_steps", "12", "--trainer.val_check_interval", "6", "--test_after_fit", "false"]
    return cli.run(["fit", *files, "--trainer.default_root_dir", str(root), *options, *more])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def test_the_run_stops_with_step_episodes_parameters_and_the_state_from_before(
    tmp_path: Path, spoilt: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NonFiniteMetaLoss) as stopped:
        fit(tmp_path / "run")
    text = str(stopped.value)
    assert text.startswith(
        f"meta-loss nan at step 7: not finite for the training episodes {SPOILT} (seed 0), in the gradient of "
    )
    assert "in the gradient of method.backbone." in text and "weights that were not finite before: none" in text
    assert "--model.non_finite skip" in text
    before = tmp_path / "run/seed_0/checkpoints/before_step7.ckpt"
    assert str(before) in text
    spoilt.undo()
    spoilt.setattr(sys, "argv", ["mamllit"])
    fit(tmp_path / "run", "--ckpt_path", str(before))  # with the cause removed
    fit(tmp_path / "clean")
    one, other = (weights(tmp_path / name / "seed_0/checkpoints/last.ckpt") for name in ("run", "clean"))
    assert all(torch.equal(one[name], value) for name, value in other.items())
    runs = [torch.load(tmp_path / name / "seed_0/checkpoints/best.ckpt", weights_only=False) for name in ("run", "clean")]
    assert runs[0]["global_step"] == runs[1]["global_step"]


def test_by_option_the_step_is_left_out_and_counted(tmp_path: Path, spoilt: pytest.MonkeyPatch) -> None:
    learner = fit(tmp_path, "--model.non_finite", "skip").model
    assert learner.skipped_steps == 1
    assert '"skipped_steps": 1' in (tmp_path / "seed_0/result.json").read_text()
    assert all(value.isfinite().all() for value in learner.parameters())
    state = torch.load(tmp_path / "seed_0/checkpoints/last.ckpt", weights_only=False)
    assert state["global_step"] == 12
    assert state["skipped_steps"] == 1
    assert all(float(entry["step"]) == 11 for entry in state["optimizer_states"][0]["state"].values())


def test_an_unknown_word_is_refused() -> None:
    method = MAML(torch.nn.Linear(1, 1), Regression(), 0.01, 1, "sum_over_shots")
    with pytest.raises(ValueError, match=r"^non_finite is 'ignore'; it must be 'stop' or 'skip'$"):
        MetaLearner(method, non_finite="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_finite_sees_one_bad_number_wherever_it_is(bad: float) -> None:
    for tensor, place in ((0, 0), (1, 5), (1, 11)):
        gradients = [torch.ones(3), torch.ones(3, 4)]
        assert finite(gradients)
        gradients[tensor].view(-1)[place] = bad
        assert not finite(gradients)
    assert not finite([torch.tensor([float("inf"), float("-inf")])])


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    assert finite([torch.full((4,), 3e38)])
