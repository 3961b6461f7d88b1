"""What is on the contact sheet."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mamllit.inference.contact_sheet import MOST, contact_sheet


def sheet(queries: int = 4, truth: str | None = "a", **changes: object) -> Figure:
    arguments: dict = {
        "support": {"a": torch.zeros(12, 1, 8, 8), "b": torch.ones(2, 1, 8, 8)},
        "query": torch.full((queries, 1, 8, 8), 0.25),
        "predicted": ["a" if i % 2 == 0 else "b" for i in range(queries)],
        "probabilities": torch.tensor([[0.9, 0.1], [0.2, 0.8]]).repeat(queries, 1)[:queries],
        "truth": [truth] * queries,
        "dark_on_light": False,
        "title": "toy",
    }
    return contact_sheet(**(arguments | changes))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_query_image_has_its_class_and_probability() -> None:
    figure = sheet()
    assert len(figure.axes[0].images) == 10 + 2 + 4  # ten of the twelve support images of a
    assert texts(figure) == [
        "a\n(12)",
        "b",
        "query: predicted class and its probability",
        "a\n90%",
        "b\n80%",
        "a\n90%",
        "b\n80%",
    ]
    assert figure.axes[0].get_title() == "toy"


def test_colours_say_what_is_right_where_that_is_known() -> None:
    colours = [to_hex(text.get_color()) for text in sheet().axes[0].texts[-2:]]
    assert colours == ["#1e8449", "#c0392b"]
    assert {to_hex(text.get_color()) for text in sheet(truth=None).axes[0].texts} == {"#000000"}


def test_the_pictures_do_not_overlap() -> None:
    extents = [image.get_extent() for image in sheet(queries=25).axes[0].images]
    boxes = [(min(x), min(y)) for x, y in ((e[:2], e[2:]) for e in extents)]
    assert len(set(boxes)) == len(boxes)
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - u) > 1 or abs(y - v) > 1 for u, v in boxes[:i])


@pytest.mark.slow
def test_ink_is_drawn_black_and_colour_in_colour() -> None:
    assert sheet(dark_on_light=True).axes[0].images[-1].get_array()[0, 0, 0] == pytest.approx(0.75)
    assert sheet().axes[0].images[-1].get_array()[0, 0, 0] == pytest.approx(0.25)
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(1, 3, 8, 8)
    last = sheet(queries=1, query=red).axes[0].images[-1].get_array()
    assert last[3, 3].tolist() == [1, 0, 0]


def test_the_first_of_many_are_drawn() -> None:
    figure = sheet(queries=MOST + 5)
    assert len(figure.axes[0].images) == 12 + MOST
    assert figure.axes[0].get_title() == f"toy (the first {MOST} of {MOST + 5})"


def test_long_names_are_shortened_and_dollars_are_no_mathematics() -> None:
    figure = sheet(support={"a" * 40: torch.zeros(1, 1, 8, 8), "$b$": torch.zeros(1, 1, 8, 8)})
    assert texts(figure)[0] == "a" * 10 + "…" + "a" * 11
    assert texts(figure)[1] == r"\$b\$"
