"""A reading is named after what was measured, and says of which weights."""

import io

import pytest
from rich.console import Console
from short_fits import make_data, make_method, make_trainer

from mamllit.callbacks import ResultWriter
from mamllit.data import EvaluationSet
from mamllit.systems import MetaLearner

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def test_a_test_that_was_cut_short_is_not_called_by_the_protocol_s_name() -> None:
    learner = MetaLearner(make_method(), compile=False, eval_steps=1)
    data = make_data(test_episodes=None, protocols=["paper", "standard"], test_shots=[5])
    trainer = make_trainer(limit_test_batches=2)
    trainer.test(learner, datamodule=data, verbose=False)
    assert [reading.name for reading in learner.readings] == ["paper[10]", "standard[10]"]
    assert [(e.name, e.protocol, e.episodes) for e in learner.evaluation_sets] == [
        ("paper[10]", "paper[10]", 10),
        ("standard[10]", "standard[10]", 10),
    ]
    assert "test/paper[10]/mse_step1_mean" in trainer.callback_metrics
    console = Console(width=200, file=io.StringIO())
    console.print(ResultWriter(published={"paper": {1: 0.67}}).table(learner))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "paper[10]" in text
    assert "published" not in text


@pytest.mark.parametrize(
    ("name", "label", "episodes", "expected"),
    [
        ("paper/5-shot", "paper", 600, "paper/5-shot"),
        ("paper/5-shot", "paper", 10, "paper[10]/5-shot"),
        ("standard[900]/5-shot", "standard[900]", 600, "standard[600]/5-shot"),
        ("taskset", "taskset", 7, "taskset[7]"),
    ],
)
def test_names(name: str, label: str, episodes: int, expected: str) -> None:
    asked = 900 if "900" in name else 600
    assert EvaluationSet(name, label, "test", 5, 5, asked).measured(episodes).name == expected


def test_the_sanity_check_leaves_no_reading_of_the_untrained_network() -> None:
    learner = MetaLearner(make_method(), compile=False, eval_steps=1)
    trainer = make_trainer(2, num_sanity_val_steps=1, limit_val_batches=1, val_check_interval=10)
    trainer.fit(learner, datamodule=make_data())
    assert learner.readings == []
    assert learner.summaries == {}
    assert "val/mse" not in trainer.callback_metrics
    trainer.validate(learner, datamodule=make_data(), verbose=False)
    assert learner.measured_at == {"val": 2}
    assert learner.readings[0].evaluation.episodes == 5  # one batch of the twenty


def test_validations_of_a_fit_and_tests_say_at_which_step() -> None:
    learner = MetaLearner(make_method(), compile=False, eval_steps=1)
    trainer = make_trainer(7, limit_val_batches=None, val_check_interval=3)
    data = make_data(test_shots=[5], protocols=["paper"])
    trainer.fit(learner, datamodule=data)
    assert learner.measured_at == {"val": 6}
    trainer.test(learner, datamodule=data, verbose=False)
    assert learner.measured_at == {"val": 6, "paper[12]": 7}
