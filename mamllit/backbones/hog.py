"""Histograms of oriented gradients: features that were drawn up by hand, and what a trained network has to beat.

N. Dalal, B. Triggs: Histograms of Oriented Gradients for Human Detection, CVPR 2005. As scikit-image computes them: a pixel
votes with the size of its gradient for one of 9 directions, the votes of a cell are a histogram, and the histograms of 2 x 2
cells are normalised together (L2, clipped at 0.2, L2 again). Of a colour image the channel with the largest gradient counts.
"""

import math

import torch
from torch import Tensor, nn

DIRECTIONS, BLOCK, CLIP, EPSILON = 9, 2, 0.2, 1e-5


class Hog(nn.Module):
    """The histograms of an image as features; nothing is learnt.

    Args:
        cell: side of a cell in pixels; None for a seventh of the image's side, and 4 at least.

    Shape: [n, C, H, W] -> [n, D]; with 7 x 7 cells, D = 6 * 6 * 2 * 2 * 9 = 1,296.

    Raises:
        ValueError: for an image of fewer than 2 x 2 cells.

    >>> import torch
    >>> from mamllit.backbones import Hog
    >>> Hog()(torch.rand(2, 3, 28, 28)).shape
    torch.Size([2, 1296])
    """

    def __init__(self, cell: int | None = None) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        cell = self.cell or max(4, min(x.shape[-2:]) // 7)
        rows, columns = (side // cell for side in x.shape[-2:])
        if min(rows, columns) < BLOCK:
            raise ValueError(
                f"an image of {x.shape[-2]}x{x.shape[-1]} pixels has fewer than 2x2 cells of {cell}; use larger images or a "
                "smaller cell"
            )
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        down[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
        right[..., 1:-1] = x[..., 2:] - x[..., :-2]
        size = torch.hypot(down, right)
        strongest = size.argmax(1, keepdim=True)
        size, down, right = (part.gather(1, strongest)[:, 0] for part in (size, down, right))
        bins = (torch.atan2(down, right) * (DIRECTIONS / math.pi) % DIRECTIONS).long().clamp(max=DIRECTIONS - 1)
        votes = size.new_zeros(len(x), DIRECTIONS, *size.shape[1:]).scatter_(1, bins[:, None], size[:, None])
        cells = nn.functional.avg_pool2d(votes[..., : rows * cell, : columns * cell], cell)  # [n, 9, rows, columns]
        blocks = cells.unfold(2, BLOCK, 1).unfold(3, BLOCK, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)
        return _unit(_unit(blocks).clamp(max=CLIP)).flatten(1)


def _unit(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum(-1, keepdim=True) + EPSILON**2).sqrt()
