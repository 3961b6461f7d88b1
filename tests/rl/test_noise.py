"""Noise of starts and actions: finite for every random word, normal, a function of seed, split, task and stream alone."""

import numpy as np
import pytest
import torch

from mamllit.rl import Noise
from mamllit.rl.noise import standard_normal


def test_every_random_word_gives_a_finite_number_and_the_ends_mirror_each_other() -> None:
    """2**32 - 1 once gave infinity: one action in 17 million, which ended a training after 62 iterations."""
    least, below, above, most = standard_normal(np.array([0, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)).tolist()
    assert least == pytest.approx(-most) and 5 < most < 6
    assert below == pytest.approx(-above) and 0 < above < 1e-6


def test_numbers_are_standard_normal_and_hang_on_seed_split_task_and_stream_alone() -> None:
    drawn = Noise(0, "train", (3, 4)).normal(1, (500, 40))
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert torch.equal(Noise(0, "train", (4,)).normal(1, (500, 40))[0], drawn[1])
    others = [Noise(1, "train", (3,)), Noise(0, "val", (3,)), Noise(0, "train", (5,))]
    assert not any(torch.equal(other.normal(1, (500, 40))[0], drawn[0]) for other in others)
    assert not torch.equal(Noise(0, "train", (3,)).normal(2, (500, 40))[0], drawn[0])
