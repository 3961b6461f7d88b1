"""Random words as a pure function of (seed, split) and a counter: the same on any rank, in any worker, and after a resume.

NumPy's Philox (Salmon et al. 2011) is a counter-based generator: its key and its counter say which words come, and no state is
saved. Episodes, tasks and the noise of trajectories are drawn from it.
"""

from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "val", "test")


def check(seed: int, split: str) -> None:
    """Refuse what has no random words.

    Raises:
        ValueError: for an unknown split or a negative seed.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be >= 0")


def random_words(seed: int, split: str, counter: Sequence[int], count: int, stream: int = 0) -> np.ndarray:
    """`count` words of 64 random bits, uint64, for a valid seed and split; four words per step of the counter's first number.

    Args:
        counter: up to four numbers, the first of which is counted up.
        stream: different streams have different keys, so that their words are independent.
    """
    key = np.array([seed, SPLITS.index(split) + len(SPLITS) * stream], dtype=np.uint64)
    begin = np.array([*counter, *[0] * (4 - len(counter))], dtype=np.uint64)
    return np.random.Philox(key=key, counter=begin).random_raw(count)
