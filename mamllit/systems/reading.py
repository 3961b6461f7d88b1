"""What one test measures: each evaluation set, once per way of normalising the query images."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mamllit.data import EvaluationSet
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm

# "population": by the meta-train images, see `mamllit.backbones.population`
Normalisation = BatchNorm | Literal["population"]
NORMALISATIONS: tuple[Normalisation, ...] = (*BATCH_NORMS, "population")


class Reading(NamedTuple):
    """An evaluation set under one kind of batch norm; None for a method that has no batch norm."""

    evaluation: EvaluationSet
    batch_norm: Normalisation | None

    @property
    def name(self) -> str:
        """What it is called in tables, files and loggers: "paper" (transductive, as published), "paper/inductive"."""
        plain = self.batch_norm in (None, "transductive")
        return self.evaluation.name if plain else f"{self.evaluation.name}/{self.batch_norm}"

    def measured(self, episodes: int) -> "Reading":
        """The reading under the name of what was measured, see `EvaluationSet.measured`."""
        return self._replace(evaluation=self.evaluation.measured(episodes))

    @property
    def way(self) -> BatchNorm:
        """How to predict; without batch norm both kinds are the same, and this is the cheaper one."""
        return self.batch_norm if self.batch_norm in BATCH_NORMS else "transductive"


def readings_of(sets: Sequence[EvaluationSet], batch_norms: Sequence[Normalisation | None]) -> list[Reading]:
    """All readings, in the order in which they are reported."""
    return [Reading(evaluation, batch_norm) for evaluation in sets for batch_norm in batch_norms]
