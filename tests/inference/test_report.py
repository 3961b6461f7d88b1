"""The page of an adaptation: what stands in it, that nothing in it leaves the file, and that no name can break it."""

import base64
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mamllit.inference import report
from mamllit.inference.outcome import HeadEstimate, Outcome
from mamllit.inference.report import wilson, write_report
from mamllit.inference.thumbnails import thumbnail

EVIL = "<script>alert(1)</script>\"'&"
CLOSED = {"html", "body", "div", "span", "table", "tr", "td", "th", "figure", "details", "p", "b", "i", "style", "h2"}


class Page(HTMLParser):
    """Every tag of a page, with the addresses in it; fails where an element is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses = re.findall(r"url\(([^)]*)\)", text)
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.open += [tag] if tag in CLOSED else []

    def handle_endtag(self, tag: str) -> None:
        if tag in CLOSED:
            assert self.open.pop() == tag


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    """Two classes with two images each, one with an evil name; of four query images one cannot be read and one is gone."""
    files = []
    for i, name in enumerate(
        ("a/1.png", "a/2.png", "b/1.png", f"b/{EVIL.replace('/', '')}.png", "q/1.png", "q/2.png", "q/3.png")
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 200), (40 * i, 0, 0)).save(file)
        files.append(file)
    files[-1].write_text("no image")
    return Outcome(
        classes=("cat", EVIL),
        support=tuple(files[:4]),
        support_labels=torch.tensor([0, 0, 1, 1]),
        query=(*files[4:], tmp_path / "q" / os.fsdecode(b"g\xffone.png")),
        probabilities=torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.7, 0.3]]),
        nearest=torch.tensor([0, 2, 3, 1]),
        truth=("cat", "cat", EVIL, None),
        head="logistic",
        features="timm:x",
        seconds=1.25,
        unsure_below=0.6,
        estimates=(
            HeadEstimate("logistic", 0.75, (0.3, 0.95), 4, 4, 0.1),
            HeadEstimate("cosine", 0.5, (0.15, 0.85), 4, 4, 0.1),
        ),
        temperature=0.8,
        root=tmp_path,
        notes=(f"left out: 1 {EVIL}",),
    )


def test_the_page_says_how_sure_it_is_and_from_what(outcome: Outcome, tmp_path: Path) -> None:
    write_report(outcome, tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text))
    for said in (
        "4 images in 2 classes",
        "1 of them is unsure: the most probable class has less than 60%.",
        "Of the 3 whose class is known, 2 are right: 66.7% (95% interval 20.8 to 93.9); guessing would give 50.0%.",
        "About 75.0% (30.0 to 95.0) right on new images like these, by leave-one-out: each of 4 support images",
        "calibrated on the same folds (temperature 0.8)",
        "guessing (chance)50.0%",
        "cosine50.0% (15.0 to 85.0)",
        "1 of 2",  # cats, in the matrix
        "wrong: it is cat",
        "cannot be read",
    ):
        assert said in plain, said
    assert plain.index("q/2.png") < plain.index("one.png") < plain.index("q/3.png") < plain.index("q/1.png")  # least sure first
    assert plain.index("unsure: the") < plain.index("55% unsure") < plain.index("q/2.png")
    assert text.count(base64.b64encode(thumbnail(outcome.support[0])).decode()) == 1  # however often it is shown
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and "width=device-width" in text and "prefers-color-scheme:dark" in text


def test_without_an_estimate_the_page_says_why(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST", 1)
    unknown = replace(outcome, estimates=(), temperature=None, truth=(None,) * 4, notes=(), support=(Path("gone"),) * 4)
    text = report.report(unknown)
    Page(text)
    assert "every class has only one support image" in text
    assert "Guessing would be right in 50.0%" in text
    assert "3 more, with higher confidence, are in predictions.csv" in text
    assert "no longer there" in text
    assert "Which classes are confused" not in text
    assert "not calibrated" in report.report(replace(outcome, temperature=None))


def test_a_thumbnail_is_small_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (400, 200)).save(tmp_path / "a.jpg", exif=exif)
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "a.jpg"))).size == (56, 112)
    assert thumbnail(tmp_path / "none.jpg") == b""


def test_wilson_s_interval() -> None:
    """For 8 of 10: centre (0.8 + 0.192) / 1.384, half width 1.96 sqrt(0.016 + 0.0096) / 1.384."""
    low, high = wilson(8, 10)
    assert (low + high) / 2 == pytest.approx(0.7167, abs=1e-4)
    assert (high - low) / 2 == pytest.approx(0.2266, abs=1e-3)
