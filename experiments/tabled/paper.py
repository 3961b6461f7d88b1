"""The MAML paper's table 1, number by number: what was published, and what was measured here so far."""

import re
from collections.abc import Iterator

from tabled.data import Cell, cell, interval, length, markdown, measured

OMNIGLOT = tuple((f"{ways}-way {shots}-shot", f"omniglot_{ways}way_{shots}shot") for ways in (5, 20) for shots in (1, 5))
MINI_IMAGENET = tuple((f"5-way {shots}-shot", f"mini_imagenet_5way_{shots}shot") for shots in (1, 5))
Numbers = list[tuple[str, str, str, int]]  # system, task, experiment, which of the numbers that its paper published: from 0 on


def _each(system: str, folder: str, tasks: tuple[tuple[str, str], ...], end: str = "") -> Numbers:
    return [(system, task, f"{folder}/{name}{end}", 0) for task, name in tasks]


def _pair(system: str, experiment: str, ways: int, published: tuple[int, int] = (0, 1)) -> Numbers:
    """One experiment that has both numbers of shots."""
    return [(system, f"{ways}-way {shots}-shot", experiment, which) for shots, which in zip((1, 5), published, strict=True)]


NUMBERS: dict[str, Numbers] = {
    "Omniglot": [
        *_pair("MANN, no convolution", "mann/omniglot_5way", 5, (1, 4)),  # the 2nd and the 5th presentation
        *_each("MAML, no convolution", "maml", OMNIGLOT[:2], "_mlp"),
        *_each("Siamese networks", "siamese", OMNIGLOT),
        *_each("Matching networks", "matching", OMNIGLOT),
        *_each("Neural statistician", "neural_statistician", OMNIGLOT),
        *_pair("Memory module", "memory_module/omniglot_5way", 5),  # the 2nd and the 6th presentation
        *_pair("Memory module", "memory_module/omniglot_20way", 20),
        *_each("MAML", "maml", OMNIGLOT),
    ],
    "mini-ImageNet": [
        *_each("Fine-tuning", "fine_tuning", MINI_IMAGENET),
        *_pair("Nearest neighbour", "nearest_neighbour/mini_imagenet_5way", 5),
        *_each("Matching networks", "matching", MINI_IMAGENET),
        *_each("Meta-learner LSTM", "meta_learner_lstm", MINI_IMAGENET),
        *_each("MAML, first order", "maml", MINI_IMAGENET, "_first_order"),
        *_each("MAML", "maml", MINI_IMAGENET),
    ],
}
INDEPENDENT: dict[tuple[str, str], tuple[float | None, ...]] = {  # best re-implementation that was found, in the order above
    ("MANN, no convolution", "Omniglot"): (88.8, 97.3),  # snowkylin/ntm
    ("MAML, no convolution", "Omniglot"): (88.9, 97.5),  # PaddleFSL
    ("Matching networks", "Omniglot"): (97.0, 99.3, 91.4, 97.4),  # schatty/matching-networks-tf
    ("Neural statistician", "Omniglot"): (95.7, 98.5, 85.6, 95.5),  # ashysheya/neural-stat
    ("Memory module", "Omniglot"): (96.0, 99.2, None, None),  # tensorflow/models, learning_to_remember_rare_events
    ("MAML", "Omniglot"): (99.4, 99.9, 92.8, 95.9),  # jik0730/Meta-SGD-pytorch; the last: oscarknagg/few-shot
    ("Matching networks", "mini-ImageNet"): (53.4, 66.3),  # open-mmlab/mmfewshot
    ("Meta-learner LSTM", "mini-ImageNet"): (None, 58.1),  # markdtw/meta-learning-lstm-pytorch
    ("MAML, first order", "mini-ImageNet"): (49.8, 64.2),  # PaddleFSL
    ("MAML", "mini-ImageNet"): (47.4, 65.2),  # RL-VIG/LibFewShot, 32 filters
}
RECIPES = {  # where it is not the experiment's own name
    "fine_tuning/mini_imagenet_5way_1shot": "mini_imagenet_5way_1shot_fine_tuning",
    "fine_tuning/mini_imagenet_5way_5shot": "mini_imagenet_5way_5shot_fine_tuning",
    "nearest_neighbour/mini_imagenet_5way": "mini_imagenet_5way_nearest_neighbour",
}


def table_one() -> str:
    """Each number of the paper's table, the run with its settings as far as it went, and the run of a recipe."""

    def rows() -> Iterator[list[str]]:
        for data, numbers in NUMBERS.items():
            others = {key[0]: iter(values) for key, values in INDEPENDENT.items() if key[1] == data}
            for system, task, experiment, which in numbers:
                other = next(others[system]) if system in others else None
                own, recipe = cell(experiment), _recipe(experiment)
                name, step = _published(own)[which]
                value, ci95 = own.published[name][step], own.published_ci95.get(name, {}).get(step)
                link = f"[{system}](experiments/{experiment}.yaml)"
                yield [f"{data}, {task}", link, interval("accuracy", value, ci95), f"{other}%" if other else "",
                       *_made(own, name, step),
                       *(_made(recipe, *_published(recipe)[which]) if recipe else ("", ""))]  # fmt: skip

    made = ["here", "iterations done / asked", "by a recipe", "iterations done / asked"]
    header = ["task", "system", "published", "independent", *made]
    return markdown(header, rows())


def _published(of: Cell) -> list[tuple[str, int]]:
    return [(name, step) for name, values in of.published.items() for step in values]


def _recipe(experiment: str) -> Cell | None:
    folder, _, name = experiment.partition("/")
    found = RECIPES.get(experiment, name if folder == "maml" else "")
    return recipe if found and (recipe := cell(f"recipes/{found}", missing_ok=True)) and recipe.seeds else None


def _made(of: Cell, name: str, step: int) -> tuple[str, str]:
    """What was measured where `name` was published, be it on fewer episodes, and the iterations before it."""
    if not of.seeds:
        return "not run", ""
    finished = of.finished or of
    for found in finished.first["results"]:
        if re.sub(r"\[\d+\]", "", found) == name:
            return measured(finished, found, step), length(finished)
    return "", length(finished)
