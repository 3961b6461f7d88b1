"""What a reader opens to follow one plain step, from `training_step` to the weights: few files, and short ones."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import mamllit
from mamllit import MAML, MLP, Classification, Conv4, Episode, Examples, MetaLearner, Method, Regression
from mamllit.core.episode import EpisodeBatch

ROOT = Path(mamllit.__file__).parent
FILES, LINES = 9, 800


def sine() -> tuple[Method, Episode]:
    part = Examples(torch.randn(4, 10, 1), torch.randn(4, 10, 1))
    return MAML(MLP(1, [40, 40], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean"), Episode(part, part)


def omniglot() -> tuple[Method, Episode]:
    part = Examples(torch.randn(2, 5, 1, 28, 28), torch.arange(5).expand(2, -1), 5)
    network = Conv4(1, 64, 5, 28, "stride")
    return MAML(network, Classification(), inner_lr=0.4, inner_steps=1, reduction="sum_over_shots"), Episode(part, part)


@pytest.mark.parametrize("made", [sine, omniglot])
def test_a_plain_step_can_be_followed_through_few_files(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method, episodes = made()
    learner = MetaLearner(method, execution="plain")
    monkeypatch.setattr(MetaLearner, "global_step", 0)
    entered: set[Path] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if ROOT in file.parents:
            entered.add(file)

    before = sys.gettrace()
    sys.settrace(note)
    try:
        learner.training_step(EpisodeBatch(torch.arange(len(episodes.support.x)), episodes), 0).backward()
    finally:
        sys.settrace(before)
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in entered}
    assert lengths.keys() >= {"systems/meta_learner.py", "engine/plain.py", "methods/maml.py", "core/inner_loop.py"}
    assert len(lengths) <= FILES, lengths
    assert sum(lengths.values()) <= LINES, lengths
