"""Omniglot in double precision, for runs with `--trainer.precision 64-true`, in which rounding has no time to grow."""

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.data import OmniglotDataModule
from mamllit.data.images import ImageDraw


class DoubleOmniglot(OmniglotDataModule):
    def build(self, drawn: ImageDraw) -> EpisodeBatch:
        batch = super().build(drawn)
        return EpisodeBatch(batch.number, Episode(*(Examples(part.x.double(), part.y, part.ways) for part in batch.episodes)))
