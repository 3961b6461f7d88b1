"""ClassPool: all images of one split, grouped by class; what an episode sampler draws from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassPool:
    """The images of one split by class.

    Args:
        images: uint8 [M, C, H, W], all images of class c contiguous.
        offsets: int64 [classes + 1]; class c owns `images[offsets[c]:offsets[c + 1]]`.
        names: one name per class, without repetition.

    Raises:
        ValueError: if the three do not fit together; all that is wrong is named at once.

    >>> import numpy as np, torch
    >>> from mamllit import ClassPool
    >>> pool = ClassPool(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), np.array([0, 2, 5]), ("a", "b"))
    >>> pool.num_classes, pool.counts.tolist()
    (2, [2, 3])
    """

    images: Tensor
    offsets: NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = []
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            problems.append(f"images must be uint8 [M, C, H, W], got {self.images.dtype} {list(self.images.shape)}")
        if self.offsets.dtype != np.int64 or self.offsets.shape != (len(self.names) + 1,):
            problems.append(
                f"offsets must be int64 [{len(self.names) + 1}] (classes + 1), "
                f"got {self.offsets.dtype} {list(self.offsets.shape)}"
            )
        elif self.offsets[0] != 0 or self.offsets[-1] != len(self.images) or (np.diff(self.offsets) < 1).any():
            problems.append(
                f"offsets must rise from 0 to the number of images ({len(self.images)}), every class holding at least "
                f"one; got {self.offsets[0]} to {self.offsets[-1]}, smallest class {np.diff(self.offsets).min(initial=0)}"
            )
        if len(set(self.names)) != len(self.names):
            repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
            more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
            problems.append(f"class names must be distinct; repeated: {', '.join(repeated[:5])}{more}")
        if problems:
            raise ValueError("ClassPool: " + "; ".join(problems))

    @classmethod
    def from_labels(cls, images: Tensor | NDArray[np.uint8], labels: Sequence[Any] | Tensor | NDArray[Any]) -> "ClassPool":
        """A pool of images in any order.

        Args:
            images: uint8 [M, C, H, W], or [M, H, W] of one channel.
            labels: [M], a number or a name per image; the classes are in the order of their sorted labels, named as text.

        Raises:
            ValueError: if there are not as many labels as images, or the images are of another kind.
        """
        pictures = torch.as_tensor(images)
        pictures = pictures[:, None] if pictures.ndim == 3 else pictures
        plain = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        if len(plain) != len(pictures):
            raise ValueError(f"ClassPool: there are {len(pictures)} images and {len(plain)} labels; each image needs one")
        if len({str(label) for label in plain}) != len(set(plain)):
            raise ValueError("ClassPool: labels are equal as text (1 and '1'); make all of them numbers or all of them names")
        try:
            names = sorted(set(plain))
        except TypeError:  # of several kinds
            names = sorted(set(plain), key=str)
        place = {name: c for c, name in enumerate(names)}
        which = np.array([place[label] for label in plain], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(names)))]).astype(np.int64)
        order = torch.from_numpy(np.argsort(which, kind="stable"))
        return cls(pictures[order], offsets, tuple(map(str, names)))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images per class, int64 [classes]."""
        return np.diff(self.offsets)

    def select(self, names: Sequence[str]) -> "ClassPool":
        """A new pool of these classes, in this order. Classes that lie next to each other are a view, others are copied.

        Raises:
            ValueError: naming the classes that this pool does not hold.
        """
        index = {name: c for c, name in enumerate(self.names)}
        unknown = [name for name in names if name not in index]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(f"the pool of {self.num_classes} classes does not contain {', '.join(unknown[:5])}{more}")
        chosen = np.array([index[name] for name in names], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.counts[chosen])]).astype(np.int64)
        if len(chosen) and (np.diff(chosen) == 1).all():
            return ClassPool(self.images[self.offsets[chosen[0]] : self.offsets[chosen[-1] + 1]], offsets, tuple(names))
        rows = np.concatenate([np.arange(self.offsets[c], self.offsets[c + 1]) for c in chosen])
        return ClassPool(self.images[torch.from_numpy(rows)], offsets, tuple(names))
