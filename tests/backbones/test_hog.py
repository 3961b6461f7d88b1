"""Histograms of oriented gradients beside scikit-image's, and a value worked out by hand."""

import numpy as np
import pytest
import torch

from mamllit.backbones import Hog


@pytest.mark.parametrize(("shape", "cell"), [((1, 28, 28), None), ((3, 30, 23), 5), ((3, 84, 84), None)])
def test_the_histograms_are_scikit_image_s(shape: tuple[int, int, int], cell: int | None) -> None:
    feature = pytest.importorskip("skimage.feature")
    images = torch.rand(3, *shape, dtype=torch.float64)
    images[0, :, 5:9, 5:9] = 0  # flat parts, where there is no direction
    side = cell or shape[1] // 7
    expected = [
        feature.hog(
            image.permute(1, 2, 0).numpy(),
            orientations=9,
            pixels_per_cell=(side, side),
            cells_per_block=(2, 2),
            channel_axis=-1,
        )
        for image in images
    ]
    assert np.allclose(Hog(cell)(images).numpy(), np.stack(expected), atol=1e-9)


def test_a_vertical_edge_has_one_direction() -> None:
    """Only the first of the 9 directions has votes: each block is (v, 0, ...) four times, normalised to 1/2."""
    image = torch.arange(8.0).expand(1, 1, 8, 8)
    found = Hog(4)(image).reshape(4, 9)
    assert found[:, 1:].abs().max() == 0
    assert found[:, 0].tolist() == pytest.approx([0.5] * 4)


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="an image of 6x9 pixels has fewer than 2x2 cells of 4; use larger images"):
        Hog()(torch.rand(1, 1, 6, 9))
