"""The figures show what they are given."""

import torch

from mamllit.figures.sample_plots import mask_probabilities, predictive_samples, step_sizes


def test_predictive_samples_draws_all_models_their_mean_and_their_spread() -> None:
    x = torch.linspace(-1, 1, 5)
    samples = torch.stack([x, 3 * x])[None].repeat(2, 1, 1)
    figure = predictive_samples(x, torch.zeros(2, 5), torch.zeros(2, 3), torch.ones(2, 3), samples, "a title")
    assert len(figure.axes) == 2
    curves = [line.get_ydata().tolist() for line in figure.axes[1].lines]
    assert curves[:3] == [x.tolist(), (3 * x).tolist(), (2 * x).tolist()]
    (band,) = figure.axes[1].collections
    low, high = band.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (-4, 4)  # at x = 1: mean 2, standard deviation 1
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()].count("sampled models") == 1


def test_mask_probabilities_has_a_line_per_layer() -> None:
    figure = mask_probabilities({"a": torch.tensor([0.9, 0.1]), "head": torch.tensor([0.5])}, "t")
    first, second = figure.axes[0].lines
    assert [round(v, 3) for v in first.get_ydata().tolist()] == [0.1, 0.9]
    assert (first.get_label(), second.get_label()) == ("a (mean 0.50)", "head (mean 0.50)")


def test_step_sizes_has_a_line_per_parameter_and_says_how_many_are_negative() -> None:
    figure = step_sizes({"w": torch.tensor([[0.3, -0.1], [0.2, 0.1]]), "b": torch.tensor([-0.2])}, "t")
    _, w, b = figure.axes[0].lines
    assert [round(v, 3) for v in w.get_ydata().tolist()] == [-0.1, 0.1, 0.2, 0.3]
    assert (w.get_label(), b.get_label()) == ("w (25% below zero)", "b (100% below zero)")
    assert list(w.get_xdata()) == [0.125, 0.375, 0.625, 0.875]
