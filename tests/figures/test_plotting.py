"""The figures as objects: what is drawn and how it is labelled. Nothing is written."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mamllit.core.metrics import Summary
from mamllit.figures.plotting import classification_adaptation, learning_curve, regression_adaptation


@pytest.fixture(autouse=True)
def _writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert os.listdir(tmp_path) == []


def labels(axes: Axes) -> list[str]:
    return [str(line.get_label()) for line in axes.get_lines()]


def drawable(figure: Figure) -> bool:
    figure.draw_without_rendering()
    return True


# ---- regression ------------------------------------------------------------------------------------------------------


def sines() -> dict:
    x = torch.linspace(-5, 5, 30)
    truth = torch.stack([a * torch.sin(x) for a in (1.0, 2.0, 3.0)])
    support_x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, -4.0]])
    return {
        "x": x,
        "truth": truth,
        "support_x": support_x,
        "support_y": 10 * support_x,
        "predictions": {0: truth + 100, 1: truth + 200, 10: truth + 300},
    }


def test_regression_draws_one_panel_per_task() -> None:
    figure = regression_adaptation(**sines(), title="MAML, K = 2")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    assert figure.get_suptitle() == "MAML, K = 2"
    assert [axes.get_xlabel() for axes in figure.axes] == ["x"] * 3
    assert [axes.get_ylabel() for axes in figure.axes] == ["y", "", ""]
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, False, False]
    assert drawable(figure)


def test_regression_draws_truth_predictions_and_support_of_each_task() -> None:
    given = sines()
    figure = regression_adaptation(**given, title="")
    for task, axes in enumerate(figure.axes):
        assert labels(axes) == ["ground truth", "before adaptation", "after 1 step", "after 10 steps", "support"]
        truth, *adapted, support = axes.get_lines()
        np.testing.assert_array_equal(truth.get_xdata(), given["x"])
        np.testing.assert_array_equal(truth.get_ydata(), given["truth"][task])
        for line, curve in zip(adapted, given["predictions"].values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), given["x"])
            np.testing.assert_array_equal(line.get_ydata(), curve[task])
        np.testing.assert_array_equal(support.get_xdata(), given["support_x"][task])
        np.testing.assert_array_equal(support.get_ydata(), given["support_y"][task])
        assert support.get_linestyle() == "None"


def test_regression_tells_the_steps_apart() -> None:
    axes = regression_adaptation(**sines(), title="").axes[0]
    adapted = axes.get_lines()[1:-1]
    assert len({to_hex(line.get_color()) for line in adapted}) == 3
    assert len({line.get_linestyle() for line in adapted}) == 3


def test_regression_with_one_task_and_one_number_of_steps() -> None:
    given = {key: value[:1] for key, value in sines().items() if key not in ("x", "predictions")}
    figure = regression_adaptation(sines()["x"], **given, predictions={2: given["truth"]}, title="")
    assert labels(figure.axes[0]) == ["ground truth", "after 2 steps", "support"]
    assert drawable(figure)


# ---- learning curve --------------------------------------------------------------------------------------------------


def summary(first: float) -> Summary:
    mean = torch.tensor([first, first / 2, first / 4], dtype=torch.float64)
    return Summary(mean, mean / 10, mean / 3, torch.zeros(3), episodes=5)


@pytest.mark.parametrize("diverging", [True, False])
def test_learning_curve_draws_one_line_per_set_with_its_interval(diverging: bool) -> None:
    given = {"paper/5-shot": summary(4.0), "paper/10-shot": summary(2.0)}
    figure = learning_curve(given, "mse", "a title", diverging)
    (axes,) = figure.axes
    assert axes.get_title() == "a title"
    assert axes.get_ylabel() == "mse"
    assert axes.get_xlabel() == ("gradient steps (dashed: median)" if diverging else "gradient steps")
    assert axes.get_yscale() == ("log" if diverging else "linear")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(given)
    for container, entry in zip(axes.containers, given.values(), strict=True):
        line, _, (bars,) = container.lines
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        np.testing.assert_array_equal(line.get_ydata(), entry.mean)
        lengths = [top - bottom for (_, bottom), (_, top) in bars.get_segments()]
        np.testing.assert_allclose(lengths, 2 * entry.ci95)
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert len(dashed) == (2 if diverging else 0)
    for line, entry in zip(dashed, given.values(), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), entry.median)
    assert drawable(figure)


def test_learning_curve_survives_a_diverged_mean() -> None:
    infinite = summary(4.0)._replace(mean=torch.tensor([4.0, torch.inf, torch.nan]), ci95=torch.full((3,), torch.nan))
    figure = learning_curve({"paper": infinite}, "mse", "", diverging=True)
    assert drawable(figure)
    dashed = figure.axes[0].get_lines()[-1]
    np.testing.assert_array_equal(dashed.get_ydata(), infinite.median)


# ---- classification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_classification_draws_the_images_and_the_probabilities(channels: int) -> None:
    ways, steps = 3, (0, 1, 2)
    support, query = torch.rand(ways, channels, 6, 6), torch.rand(2, channels, 6, 6)
    labelled = torch.tensor([2, 0])
    probabilities = {step: torch.rand(2, ways).softmax(-1) for step in steps}
    figure = classification_adaptation(support, query, labelled, probabilities, "MAML, K = 1")
    assert figure.get_suptitle() == "MAML, K = 1"
    pictures = [axes for axes in figure.axes if axes.get_images()]
    curves = [axes for axes in figure.axes if axes.get_lines()]
    assert [axes.get_title() for axes in pictures] == [
        "support 0", "support 1", "support 2", "query, class 2", "query, class 0",
    ]  # fmt: skip
    for axes, image in zip(pictures, [*support, *query], strict=True):
        shown = np.asarray(axes.get_images()[0].get_array())
        np.testing.assert_array_equal(shown, image.permute(1, 2, 0) if channels == 3 else image[0])
    assert len(curves) == 2
    for row, axes in enumerate(curves):
        assert len(axes.get_lines()) == ways
        for way, line in enumerate(axes.get_lines()):
            np.testing.assert_array_equal(line.get_xdata(), steps)
            np.testing.assert_allclose(line.get_ydata(), [float(probabilities[step][row, way]) for step in steps])
        green = [way for way, line in enumerate(axes.get_lines()) if to_hex(line.get_color()) == "#1e8449"]
        assert green == [int(labelled[row])]
    assert [axes.get_xlabel() for axes in curves] == ["", "gradient steps (green: probability of the true class)"]
    assert drawable(figure)
