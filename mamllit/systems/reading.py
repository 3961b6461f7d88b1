"""What one test measures: each evaluation set, once per way of normalising the query images."""

from collections.abc import Sequence
from typing import NamedTuple

from mamllit.data import EvaluationSet
from mamllit.engine.evaluation import BatchNorm


class Reading(NamedTuple):
    """An evaluation set under one kind of batch norm; None for a method that has no batch norm."""

    evaluation: EvaluationSet
    batch_norm: BatchNorm | None

    @property
    def name(self) -> str:
        """What it is called in tables, files and loggers: "paper" (transductive, as published), "paper/inductive"."""
        return f"{self.evaluation.name}/inductive" if self.batch_norm == "inductive" else self.evaluation.name

    def measured(self, episodes: int) -> "Reading":
        """The reading under the name of what was measured, see `EvaluationSet.measured`."""
        return self._replace(evaluation=self.evaluation.measured(episodes))

    @property
    def way(self) -> BatchNorm:
        """How to predict; without batch norm both ways are the same, and this is the cheaper one."""
        return self.batch_norm or "transductive"


def readings_of(sets: Sequence[EvaluationSet], batch_norms: Sequence[BatchNorm | None]) -> list[Reading]:
    """All readings, in the order in which they are reported."""
    return [Reading(evaluation, batch_norm) for evaluation in sets for batch_norm in batch_norms]
