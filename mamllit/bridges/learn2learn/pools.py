"""mamllit's data sets as learn2learn's: the images of a split as a data set, and task sets made of it."""

from collections.abc import Mapping

import learn2learn as l2l
from torch import Tensor
from torch.utils.data import Dataset

from mamllit.data.pool import ClassPool


class ClassPoolDataset(Dataset):
    """The images of a `ClassPool`, float32 [C, H, W] in 0 to 1, each with the number of its class.

    Keeps the list of labels that `learn2learn.data.MetaDataset` would otherwise read every image for.
    """

    def __init__(self, pool: ClassPool) -> None:
        self.pool = pool
        self.labels = [c for c, count in enumerate(pool.counts.tolist()) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pool.images[index].float() / 255, self.labels[index]


def pool_tasksets(
    pools: Mapping[str, ClassPool],
    ways: int,
    train_samples: int,
    test_samples: int,
    num_tasks: int = -1,
    rotate: bool = False,
) -> "l2l.vision.benchmarks.BenchmarkTasksets":
    """Task sets like those of `get_tasksets`, from the pools "train", "val" and "test" of a mamllit data set.

    Args:
        ways, train_samples, test_samples, num_tasks: as of `get_tasksets`.
        rotate: turn each class of a task by a random multiple of 90 degrees.
    """

    def taskset(split: str, samples: int) -> l2l.data.Taskset:
        images = ClassPoolDataset(pools[split])
        data = l2l.data.MetaDataset(images, indices_to_labels=dict(enumerate(images.labels)))
        transforms = [
            l2l.data.transforms.FusedNWaysKShots(data, n=ways, k=samples),
            l2l.data.transforms.LoadData(data),
            l2l.data.transforms.RemapLabels(data),
            l2l.data.transforms.ConsecutiveLabels(data),
        ]
        if rotate:
            transforms.append(l2l.vision.transforms.RandomClassRotation(data, [0.0, 90.0, 180.0, 270.0]))
        return l2l.data.Taskset(data, transforms, num_tasks=num_tasks)

    return l2l.vision.benchmarks.BenchmarkTasksets(
        taskset("train", train_samples), taskset("val", test_samples), taskset("test", test_samples)
    )
