"""Dropout whose choice belongs to the images: the same for them on one process or many, vectorised or not, compiled or not.

As all that is random in a method (see `mamllit.core.noise`), so that a resumed run goes on to the bit. An episode brings new
images, and with them a new choice; the same images (in the next inner step of a task) bring the same one.
"""

from torch import Tensor

from mamllit.core.noise import key_of
from mamllit.kernels.dropout import factors

APART = 4  # every so many rows and columns of an image decide; all would take a tenth of a step


def check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")


def key_of_images(images: Tensor) -> Tensor:
    """What `dropped` draws for a batch of images [n, C, H, W] in a forward pass: a scalar int64."""
    return key_of(images[..., ::APART, ::APART])


def dropped(x: Tensor, share: float, key: Tensor, block: int) -> Tensor:
    """`x` [n, C, H, W], of the `block` of that number, with each value 0 with the chance `share`, else / (1 - share)."""
    n, channels, height, width = x.shape
    return x * factors(key, block, (n, height, width, channels), share, x.dtype).permute(0, 3, 1, 2)  # in the order of memory
