"""What is compared on one's own images: how the sets are made, and that every way sees the same episodes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mamllit.data import ImageFolderDataModule

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
import glyphs  # noqa: E402
import own_sets  # noqa: E402
import tables  # noqa: E402


def test_glyphs_are_drawn_in_every_font(tmp_path: Path) -> None:
    assert len(set(glyphs.CHARACTERS)) == len(glyphs.CHARACTERS) == 58
    assert len({glyphs.folder_of(character).lower() for character in glyphs.CHARACTERS}) == 58
    glyphs.write_glyphs(tmp_path, "A?", glyphs.FONTS[:3], size=32)
    files = sorted(tmp_path.glob("*/*.png"))
    assert [file.parent.name for file in files] == ["063_sign"] * 3 + ["065_A"] * 3
    for file in files:
        pixels = np.asarray(Image.open(file))
        rows, columns = np.nonzero(pixels < 128)
        assert pixels.shape == (32, 32) and pixels[0].min() == 255
        assert max(np.ptp(rows), np.ptp(columns)) >= 20  # as large as fits
    assert len({file.read_bytes() for file in files}) == 6


def test_photographs_are_taken_by_folder_without_mirror_images(tmp_path: Path) -> None:
    for where, count in {"animals/birds": 8, "food/fruit": 6}.items():
        for name in [f"{i}.png" for i in range(count)] + ["0_mirror.png"]:
            file = tmp_path / "packages" / where / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(file)
    own_sets.prepare_photos(tmp_path / "packages", tmp_path / "out")
    assert {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "out").iterdir()} == {"bird": 8}


def test_features_and_images_are_met_in_the_same_episodes(tmp_path: Path) -> None:
    glyphs.write_glyphs(tmp_path, glyphs.CHARACTERS[:16], glyphs.FONTS[:7], size=32)
    images = own_sets.module(ImageFolderDataModule, tmp_path, 16, 1)
    vectors = own_sets.module(own_sets.Vectors, tmp_path, 16, 1)
    vectors.features = {split: pool.images.float().flatten(1) / 255 for split, pool in vectors.pools.items()}
    for one, other in zip(images.evaluation_sets("test"), vectors.evaluation_sets("test"), strict=True):
        assert one == other and one.queries == own_sets.QUERIES and one.episodes == own_sets.EPISODES
        first, second = (data.episodes(one, 3, 4).episodes for data in (images, vectors))
        for part in ("support", "query"):
            assert torch.equal(getattr(first, part).x.flatten(2), getattr(second, part).x)
            assert torch.equal(getattr(first, part).y, getattr(second, part).y)


def test_the_command_says_what_it_wants(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["own_sets.py", "prepare", "emoji", "out"])
    with pytest.raises(SystemExit):
        own_sets.main()
    assert "emoji is made from packages: give their folder with --packages" in capsys.readouterr().err


def test_the_best_of_the_table_is_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(way: str, one: float, five: float) -> dict:
        return {"way": way, "iterations": 0, "seconds": {"cpu": 1.4},
                "shots": {"1": {"mean": one, "ci95": 0.01}, "5": {"mean": five, "ci95": 0.01}}}  # fmt: skip

    (tmp_path / "own_sets").mkdir()
    found = {
        "set": "x",
        "about": "toys",
        "chance": 0.2,
        "rows": [row("a", 0.5, 0.6), row("b", 0.4, 0.7), row("c", 0.5 - 1e-8, 0)],
    }
    (tmp_path / "own_sets/x.json").write_text(json.dumps(found))
    monkeypatch.setattr(tables.data, "RESULTS", tmp_path)
    lines = tables.own_sets().splitlines()
    assert lines[2:] == [
        "| x: toys | chance |  | 20.0% | 20.0% |  |",
        "|  | a |  | **50.0 ± 1.0%** | 60.0 ± 1.0% | 1 |",
        "|  | b |  | 40.0 ± 1.0% | **70.0 ± 1.0%** | 1 |",
        "|  | c |  | **50.0 ± 1.0%** | 0.0 ± 1.0% | 1 |",
    ]
