"""The figures of a run: their files, and that what they show is what the data and the model say."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mamllit.backbones import MLP
from mamllit.callbacks import AdaptationFigures
from mamllit.callbacks.figures import outputs_after
from mamllit.core.episode import Episode, Examples
from mamllit.core.metrics import Summary
from mamllit.data import EpisodicDataModule, EvaluationSet, SineDataModule
from mamllit.methods import MAML, MetaSGD, MTNet
from mamllit.objectives import Classification, Regression
from mamllit.systems import MetaLearner
from mamllit.systems.reading import readings_of

TESTS = Path(__file__).parents[1] / "helpers"
PNG = b"\x89PNG\r\n\x1a\n"


def after_test(method: MAML | MetaSGD | MTNet, data: EpisodicDataModule, eval_steps: int = 3) -> MetaLearner:
    """A learner as a test leaves it, with made-up values."""
    learner = MetaLearner(method, eval_steps=eval_steps)
    learner.evaluation_sets = data.evaluation_sets("test")
    learner.readings = readings_of(learner.evaluation_sets, (None,))
    values = torch.linspace(1, 0.5, eval_steps + 1)
    learner.summaries = {e.name: Summary(values, values / 10, values, values * 0, 4) for e in learner.evaluation_sets}
    learner.summaries["val"] = learner.summaries[learner.evaluation_sets[0].name]
    learner.trained_steps = 123
    return learner


def sine(**changes: Any) -> tuple[MetaLearner, SineDataModule]:
    data = SineDataModule(seed=0, eval_seed=5, test_shots=(5, 10), protocols=("paper",), test_episodes=4, **changes)
    return after_test(MAML(MLP(1, [8], 1), Regression(), 0.01, 1, "sum_over_shots"), data), data


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> tuple[MetaLearner, EpisodicDataModule]:
    monkeypatch.syspath_prepend(TESTS)
    from toy_images import ToyImages

    data = ToyImages(ways=3, shots=2, queries=2)
    data.setup("test")
    return after_test(MAML(MLP(64, [8], 3), Classification(), 0.1, 1, "sum_over_shots"), data), data


def trainer(folder: Path, data: Any, **changes: Any) -> Any:
    return SimpleNamespace(
        **{"default_root_dir": str(folder), "is_global_zero": True, "datamodule": data, "loggers": [], **changes}
    )


def written(folder: Path) -> set[str]:
    """Names of the PNG files that are really PNGs and no stubs."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 5000 for path in files)
    return {str(path.relative_to(folder)) for path in files}


# ---- the files -------------------------------------------------------------------------------------------------------


def test_a_regression_test_writes_the_curve_and_one_figure_per_shots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner, data = sine()
    AdaptationFigures().on_test_end(trainer(tmp_path, data), learner)
    names = {"figures/learning_curve.png", "figures/adaptation_5shot.png", "figures/adaptation_10shot.png"}
    assert written(tmp_path) == names
    assert set(capsys.readouterr().out.splitlines()) == {f"figure: {tmp_path / name}" for name in names}


def test_what_a_method_has_learned_beside_weights_is_drawn() -> None:
    _, data = sine()
    figures = {}
    for method in (MetaSGD(MLP(1, [8], 1), Regression(), "mean"), MTNet(MLP(1, [8], 1), Regression(), 0.01, 1, "mean")):
        drawn = AdaptationFigures(steps=(0,), episodes=1).draw(after_test(method, data, 1), data, "t")
        figures |= {name: figure for name, figure in drawn.items() if not name.startswith(("learning", "adaptation"))}
    assert set(figures) == {"step_sizes", "mask_probabilities"}
    labels = [line.get_label() for line in figures["step_sizes"].axes[0].lines]
    assert labels[1:] == [f"layers.{i}.{kind} (0% below zero)" for i in (0, 1) for kind in ("weight", "bias")]
    assert [line.get_label() for line in figures["mask_probabilities"].axes[0].lines] == [
        "layers.0 (mean 0.50)", "layers.1 (mean 0.50)",
    ]  # fmt: skip


def test_a_classification_test_writes_the_curve_and_an_episode(
    images: tuple[MetaLearner, EpisodicDataModule], tmp_path: Path
) -> None:
    learner, data = images
    AdaptationFigures().on_test_end(trainer(tmp_path, data), learner)
    assert written(tmp_path) == {"figures/learning_curve.png", "figures/adaptation_2shot.png"}


def test_other_ranks_and_foreign_data_draw_nothing(tmp_path: Path) -> None:
    learner, data = sine()
    AdaptationFigures().on_test_end(trainer(tmp_path, data, is_global_zero=False), learner)
    AdaptationFigures().on_test_end(trainer(tmp_path, None), learner)
    assert list(tmp_path.iterdir()) == []


# ---- what they show --------------------------------------------------------------------------------------------------


def test_the_drawn_truth_is_the_sine_of_the_task() -> None:
    learner, data = sine()
    figures = AdaptationFigures(episodes=3).draw(learner, data, "title")
    for evaluation in learner.evaluation_sets:
        drawn = data.draw(5, "test", evaluation.shots, evaluation.queries, 0, 3)
        panels = figures[f"adaptation_{evaluation.shots}shot"].axes
        assert len(panels) == 3
        for task, axes in enumerate(panels):
            truth, support = axes.get_lines()[0], axes.get_lines()[-1]
            x = np.asarray(truth.get_xdata())
            assert (x[0], x[-1]) == (-5, 5)
            expected = float(drawn.amplitude[task]) * np.sin(x - float(drawn.phase[task]))
            np.testing.assert_allclose(truth.get_ydata(), expected, atol=1e-5)
            assert 0.1 <= float(drawn.amplitude[task]) <= 5
            assert 0 <= float(drawn.phase[task]) <= math.pi
            points = np.asarray(support.get_xdata())
            np.testing.assert_array_equal(points, drawn.x[task, : evaluation.shots, 0])
            on_curve = float(drawn.amplitude[task]) * np.sin(points - float(drawn.phase[task]))
            np.testing.assert_allclose(support.get_ydata(), on_curve, atol=1e-5)


def test_the_drawn_predictions_are_those_of_the_adapted_model() -> None:
    learner, data = sine()
    evaluation = learner.evaluation_sets[0]
    axes = AdaptationFigures(steps=(0, 2, 10), episodes=1).draw(learner, data, "")["adaptation_5shot"].axes[0]
    _, *adapted, _ = axes.get_lines()
    asked = ["before adaptation", "after 1 step", "after 2 steps"]  # 1 is the headline, 10 is beyond eval_steps
    assert [line.get_label() for line in adapted] == asked
    batch = data.episodes(evaluation, 0, 1).episodes
    support = type(batch.support)(batch.support.x[0], batch.support.y[0])
    x = torch.linspace(-5, 5, 200)[:, None]
    for line, steps in zip(adapted, (0, 1, 2), strict=True):
        state = learner.method.adapt(support, steps)
        expected = learner.method.predict(state, x).detach()[:, 0]
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-5)
    assert not np.allclose(adapted[0].get_ydata(), adapted[1].get_ydata())


def test_the_learning_curve_shows_the_tested_sets_only() -> None:
    learner, data = sine()
    (axes,) = AdaptationFigures().draw(learner, data, "MAML, 123 iterations")["learning_curve"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [e.name for e in learner.evaluation_sets]
    assert axes.get_title() == "MAML, 123 iterations, meta-test"
    assert axes.get_ylabel() == "mse"


def test_the_classification_figure_shows_one_support_and_one_query_image_of_each_class(
    images: tuple[MetaLearner, EpisodicDataModule],
) -> None:
    learner, data = images
    evaluation: EvaluationSet = learner.evaluation_sets[0]
    assert evaluation.queries == 3
    figure = AdaptationFigures(steps=(0, 2)).draw(learner, data, "title")["adaptation_2shot"]
    batch = data.episodes(evaluation, 0, 1).episodes
    pictures = [axes for axes in figure.axes if axes.get_images()]
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in pictures]
    expected = [*batch.support.x[0, ::2, 0], *batch.query.x[0, ::3, 0]]
    assert len(shown) == len(expected) == 6
    for mine, image in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(mine, image)
    assert [axes.get_title() for axes in pictures[3:]] == ["query, class 0", "query, class 1", "query, class 2"]
    support = type(batch.support)(batch.support.x[0], batch.support.y[0], 3)
    states = learner.method.trajectory(support, 2)
    outputs = [learner.method.predict(state, batch.query.x[0]).softmax(-1).detach() for state in states]
    curves = [axes for axes in figure.axes if axes.get_lines()]
    for row, axes in enumerate(curves):
        for way, line in enumerate(axes.get_lines()[:3]):  # the fourth marks the headline step
            np.testing.assert_allclose(line.get_ydata(), [float(p[3 * row, way]) for p in outputs], atol=1e-6)
    assert figure.get_suptitle() == "title, K = 2"


# ---- the headline step, and ink --------------------------------------------------------------------------------------


def test_the_headline_step_is_drawn_whatever_else_is() -> None:
    learner, data = sine()
    learner.report_step = 2
    figure = AdaptationFigures(steps=(0, 1)).draw(learner, data, "title")["adaptation_5shot"]
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert {"before adaptation", "after 1 step", "after 2 steps"} <= labels


def test_an_episode_of_images_is_drawn_up_to_the_headline_step_and_in_its_own_ink(images: Any) -> None:
    learner, data = images
    learner.report_step = 3
    figures = AdaptationFigures(steps=(0, 1))
    curves = [axes for axes in figures.draw(learner, data, "t")["adaptation_2shot"].axes if axes.lines]
    assert list(curves[0].lines[0].get_xdata()) == [0, 1, 2, 3]
    marks = [line for line in curves[0].lines if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in marks] == [3]
    shown = {}
    for inverted in (False, True):
        data.inverted = inverted
        figure = figures.draw(learner, data, "t")["adaptation_2shot"]
        shown[inverted] = next(axes.images[0] for axes in figure.axes if axes.images)
    # what is 1 for the network is white, unless that is ink: so the picture looks as its file in both cases
    assert np.allclose(shown[True].get_array(), shown[False].get_array(), atol=1e-6)
    assert shown[True].get_cmap().name == "gray"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_drawn_is_computed_in_the_precision_of_the_method(dtype: torch.dtype) -> None:
    method = MAML(MLP(1, [4], 1).to(dtype), Regression(), inner_lr=0.1, inner_steps=1, reduction="mean")
    part = Examples(torch.rand(3, 1), torch.rand(3, 1))
    outputs = outputs_after(method, Episode(part, part), torch.rand(5, 1), [0, 1])
    assert [outputs[s].shape for s in (0, 1)] == [(5, 1)] * 2
    assert outputs[1].dtype is torch.promote_types(dtype, torch.float32)
    assert not torch.equal(outputs[0], outputs[1])
