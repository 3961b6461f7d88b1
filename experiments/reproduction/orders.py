"""The orders that must come out of a comparison, and whether they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reproduction.comparison import Compared, interval

SHOTS = (5, 10, 20)


@dataclass(frozen=True)
class Order:
    """One claim: the error of cell `lower` is below that of `upper`, and `factor` times as large still is.

    `steps` are the inner steps that the lower and the upper one make.
    """

    claim: str
    lower: str
    upper: str
    factor: float = 1.0
    steps: tuple[int, int] = (1, 1)


SINE = [
    Order("Meta-SGD below MAML after one step", "meta_sgd/sine_10shot", "maml/sine_10shot"),
    Order("MT-net below T-net", "mt_net/sine_10shot", "mt_net/sine_10shot_t_net"),
    Order("T-net below MAML with their initialisation", "mt_net/sine_10shot_t_net", "maml/sine_10shot_paper_init"),
    Order("first-order MAML above MAML", "maml/sine_10shot", "maml/sine_10shot_first_order"),
    Order("pretrained far above MAML", "maml/sine_10shot", "joint_training/sine_10shot_pretrained", 3),
    Order("oracle far below MAML", "joint_training/sine_10shot_oracle", "maml/sine_10shot", 3, (0, 1)),
]


@dataclass(frozen=True)
class Verdict:
    """ "holds", "does not hold" or "not measured", and the numbers that say so."""

    claim: str
    word: str
    numbers: str


def judge(order: Order, compared: Mapping[str, Compared]) -> Verdict:
    """An order holds where at every number of shots the 95% interval of the paired difference lies below zero.

    The difference is `factor` times the lower error less the upper one, episode by episode, each averaged over the seeds.
    """
    parts, holds = [], True
    for shots in SHOTS:
        evaluation = f"standard/{shots}-shot"
        pair = [
            compared[name].errors(evaluation, steps) if name in compared else None
            for name, steps in zip((order.lower, order.upper), order.steps, strict=True)
        ]
        if pair[0] is None or pair[1] is None:
            return Verdict(order.claim, "not measured", "")
        low, high = pair[0].mean(0), pair[1].mean(0)
        mean, ci95 = interval(order.factor * low - high)
        holds = holds and mean + ci95 < 0
        times = f"{order.factor:g} x " if order.factor != 1 else ""
        parts.append(f"K = {shots}: {times}{low.mean():.3f} - {high.mean():.3f} = {mean:+.3f} ± {ci95:.3f}")
    return Verdict(order.claim, "holds" if holds else "does not hold", "; ".join(parts) + iterations(order, compared))


def iterations(order: Order, compared: Mapping[str, Compared]) -> str:
    """How long and how often both were trained, where that is not the same."""
    told = [
        (sorted({run.steps_done for run in compared[name].runs}), len(compared[name].runs))
        for name in (order.lower, order.upper)
    ]
    if told[0] == told[1]:
        return ""
    return f" ({told[0][0]} iterations and {told[0][1]} seeds against {told[1][0]} and {told[1][1]})"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The list of checks."""
    return "\n".join(f"- **{v.word}**: {v.claim}" + f" ({v.numbers})" * bool(v.numbers) for v in verdicts)
