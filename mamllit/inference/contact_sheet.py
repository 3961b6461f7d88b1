"""A contact sheet: the support images of every class on top, and below them each query image with its predicted class."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mamllit.inference.outcome import readable

COLUMNS = 10
MOST = 300  # query images that are drawn; the CSV has all
GAP = 0.12  # between two pictures, of the side of one
TEXT = 0.42  # height of the two lines below a picture
RIGHT, WRONG = "#1e8449", "#c0392b"


def contact_sheet(
    support: Mapping[str, Tensor],
    query: Tensor,
    predicted: Sequence[str],
    probabilities: Tensor,
    truth: Sequence[str | None],
    dark_on_light: bool,
    title: str,
) -> Figure:
    """The figure, as the network saw the images; a prediction is green or red where the true class is known.

    Args:
        support: class name -> [K, C, S, S], values in [0, 1]; up to ten images of a class are shown.
        query: [n, C, S, S], or the first of them: 300 are drawn, and the title says so.
        predicted: [n] class names, and `truth` likewise, None where unknown.
        probabilities: [n, N].
        dark_on_light: 1 is drawn black, as ink.
    """
    drawn, step = min(len(query), MOST), 1 + GAP
    support_rows, query_rows = len(support), -(-drawn // COLUMNS)
    height = support_rows * step + 0.7 + query_rows * (step + TEXT)
    labels = 2.6  # room for the class names on the left, in pictures
    width = labels + COLUMNS * step
    figure = Figure(figsize=(width * 0.85, height * 0.85 + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")

    def picture(image: Tensor, column: int, top: float) -> float:
        left = labels + column * step
        pixels = (1 - image if dark_on_light else image).permute(1, 2, 0)
        pixels = pixels if pixels.shape[-1] == 3 else pixels.expand(-1, -1, 3)
        axes.imshow(pixels, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        axes.plot([left, left + 1, left + 1, left, left], [top, top, top + 1, top + 1, top], color="#999999", linewidth=0.5)
        return left + 0.5

    for row, (name, images) in enumerate(support.items()):
        count = f"\n({len(images)})" if len(images) > COLUMNS else ""
        axes.text(labels - 0.15, row * step + 0.5, f"{_short(name, 22)}{count}", ha="right", va="center", fontsize=8)
        for column, image in enumerate(images[:COLUMNS]):
            picture(image, column, row * step)
    top = support_rows * step + 0.25
    axes.text(labels, top, "query: predicted class and its probability", va="center", fontsize=8, fontweight="bold")
    confidence = torch.amax(probabilities, -1).tolist()
    for i in range(drawn):
        y = support_rows * step + 0.55 + (i // COLUMNS) * (step + TEXT)
        centre = picture(query[i], i % COLUMNS, y)
        known = truth[i]
        color = "black" if known is None else RIGHT if known == predicted[i] else WRONG
        text = f"{_short(predicted[i], 14)}\n{100 * confidence[i]:.0f}%"
        axes.text(centre, y + 1.04, text, ha="center", va="top", fontsize=6.5, color=color, linespacing=1.1)
    # imshow resets the limits
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_title(title + (f" (the first {MOST} of {len(predicted)})" if drawn < len(predicted) else ""), fontsize=9)
    return figure


def _short(text: str, most: int) -> str:
    """The text, with its middle left out where it is long; a dollar sign is none of mathematics."""
    text = readable(text)
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
    return text.replace("$", r"\$")
