"""Streams of random images for tests that need no files; `class_path: toy_streams.ToyStreams`."""

from toy_images import SIDE, ToyImages

from mamllit.data import ClassPool, OmniglotStreamDataModule, Preparation


class ToyStreams(OmniglotStreamDataModule):
    """Streams of 12 of the images of `ToyImages`."""

    def __init__(self, root: str = "", meta_batch_size: int = 4, length: int = 12, presentations: bool = False) -> None:
        super().__init__(
            root, ways=3, length=length, order="rounds", image_size=SIDE, meta_batch_size=meta_batch_size, standard_queries=2,
            val_episodes=4, test_streams=4, test_episodes=5, eval_batch_size=2, test_shots=(1, 2), rotate=False,
            presentations=presentations,
        )  # fmt: skip

    def stored(self) -> Preparation:
        return Preparation(SIDE, 1)

    def prepare_data(self) -> None:
        """Nothing lies on the disk."""

    def load(self) -> dict[str, ClassPool]:
        return ToyImages().load()
