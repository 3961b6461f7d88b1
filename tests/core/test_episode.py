"""An episode knows its ways, shots and queries, and refuses what cannot be."""

import pytest
import torch

from mamllit.core.episode import Episode, Examples


def test_an_episode_knows_its_numbers() -> None:
    support = Examples(torch.rand(6, 1), torch.arange(3).repeat_interleave(2), 3)
    query = Examples(torch.rand(12, 1), torch.arange(3).repeat_interleave(4), 3)
    episode = Episode(support, query)
    assert (episode.ways, episode.shots, episode.queries) == (3, 2, 4)
    assert (support.joined(query).per_class, support.joined(query).ways) == (6, 3)
    points = Examples(torch.rand(10, 1), torch.rand(10, 1))
    assert (points.ways, points.per_class) == (1, 10)


def test_labels_without_a_number_of_ways_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ways is 1, but the targets are labels \(torch.int64\); give the number of classes"):
        Examples(torch.rand(6, 1), torch.arange(3).repeat_interleave(2))


def test_classes_of_unequal_size_have_no_number_per_class() -> None:
    with pytest.raises(ValueError, match="7 examples cannot be split equally over 3 ways; give every class the same number"):
        Examples(torch.rand(7, 1), torch.zeros(7, dtype=torch.int64), 3).per_class  # noqa: B018
