"""Weights meet images: what differs is mended where it can be, and refused in a sentence where it cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mamllit.data import ClassPool, ImageDataModule, ImageFolderDataModule, OmniglotDataModule, Preparation
from mamllit.data.images import weights_meet
from mamllit.data.preparation import border, omniglot, preparation_of
from mamllit.data.sources import prepare
from mamllit.pretrained import names, read

INK = omniglot("nearest")  # what Omniglot's weights saw


@pytest.fixture(autouse=True)
def _say_again() -> None:
    prepare.say_once.cache_clear()


class Own(ImageDataModule):
    """A user's module: six classes of drawings of 28x28, dark on light or light on dark."""

    def __init__(self, light: int = 255, size: int = 28, **settings: Any) -> None:
        super().__init__(ways=2, queries=3, standard_queries=3, val_episodes=2, test_episodes=2, seed=0, **settings)
        self.light, self.size = light, size

    def load(self) -> dict[str, ClassPool]:
        images = torch.full((24, self.size, self.size), self.light, dtype=torch.uint8)
        for i, image in enumerate(images):
            image[5 + i % 6 : 10 + i % 6, 5:20] = 255 - self.light
        pool = ClassPool.from_labels(images, [i % 6 for i in range(24)])
        return dict.fromkeys(("train", "val", "test"), pool)


def support(data: ImageDataModule) -> torch.Tensor:
    return data.episodes(data.evaluation_sets("test")[0]).episodes.support.x


def folder(root: Path, invert: bool = False) -> Path:
    """Nine classes of four drawings, dark on light unless inverted."""
    for c in range(9):
        for i in range(4):
            image = Image.new("L", (30, 30), 240)
            image.paste(20, (4 + c, 6 + i, 12 + c, 14 + i))
            (root / f"c{c}").mkdir(parents=True, exist_ok=True)
            (ImageOps.invert(image) if invert else image).save(root / f"c{c}" / f"{i}.png")
    return root


def images(root: Path, **settings: Any) -> ImageFolderDataModule:
    small: dict[str, Any] = {
        "ways": 2,
        "queries": 1,
        "standard_queries": 2,
        "image_size": 28,
        "channels": 1,
        "test_episodes": 2,
    }
    small["split_ratios"] = (0.34, 0.33, 0.33)
    return ImageFolderDataModule(root, **{**small, **settings})


@pytest.mark.parametrize("first", ["weights", "setup"])
def test_dark_on_light_is_inverted_for_weights_that_know_ink_as_1(first: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, data = Own(), Own()
    plain.setup("test")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        if first == "weights":
            data.meet(INK, "omni")
        data.setup("test")
        if first == "setup":
            data.meet(INK, "omni")
    assert torch.allclose(support(data), 1 - support(plain))
    assert border(support(data).flatten(0, 1)).mean() == 0
    assert data.preparation.invert
    assert "the images are dark on light and are inverted: the weights of omni were trained with ink = 1" in caplog.messages


def test_what_was_given_out_before_the_weights_came_does_not_stay() -> None:
    data = Own()
    data.setup("test")
    before = support(data)
    data.meet(INK, "omni")
    assert torch.allclose(support(data), 1 - before)
    data.meet(Preparation(28, 1), "photographs")  # other weights, other needs
    assert torch.equal(support(data), before)


def test_light_on_dark_stays_for_weights_that_know_ink_as_1(caplog: pytest.LogCaptureFixture) -> None:
    data = Own(light=0)
    data.setup("test")
    before = support(data)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        data.meet(INK, "omni")
    assert torch.equal(support(data), before)
    assert "the weights of omni were trained with ink = 1, as in these images, which are light on dark" in caplog.messages


def test_weights_that_know_white_as_1_leave_the_images() -> None:
    data = Own()
    data.setup("test")
    before = support(data)
    data.meet(Preparation(28, 1), "grey")
    assert torch.equal(support(data), before)


@pytest.mark.parametrize("first", ["weights", "setup"])
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            Preparation(84, 3),
            "the weights of w were trained on 84x84 pixels, 3 channels, but the data has 28x28 pixels, 1 channel",
        ),
        (Preparation(20, 1), "trained on 20x20 pixels, 1 channel, but the data has 28x28 pixels, 1 channel"),
        (Preparation(28, 1, mean=0.5, std=0.25), "mean 0.5 and std 0.25, but the data is normalised by mean 0 and std 1"),
    ],
)
def test_other_sizes_channels_and_normalisations_are_refused(weights: Preparation, said: str, first: str) -> None:
    data = Own()
    if first == "weights":
        data.meet(weights, "w")
    else:
        data.setup("test")
    with pytest.raises(ValueError) as caught:
        data.setup("test") if first == "weights" else data.meet(weights, "w")
    assert said in str(caught.value)
    assert "Match the data (`image_size`, `channels`) to the weights, or use other weights" in str(caught.value)


def test_a_folder_is_inverted_where_asked_and_where_weights_want_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    plain, asked, auto = images(root, invert=False), images(root, invert=True), images(root)
    auto.meet(INK, "omni")
    for data in (plain, asked, auto):
        data.setup("test")
    asked.meet(INK, "omni")  # agrees
    assert torch.allclose(support(asked), 1 - support(plain))
    assert torch.equal(support(asked), support(auto))
    assert [data.preparation.invert for data in (plain, asked, auto)] == [False, True, True]
    assert plain.preparation == Preparation(28, 1, upright=True)


def test_a_setting_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "dark")
    for invert, weights, text in (
        (
            False,
            INK,
            "were trained with ink = 1, but ImageFolderDataModule has white = 1, because `invert` is false: leave it at auto",
        ),
        (
            True,
            Preparation(28, 1),
            "were trained with white = 1, but ImageFolderDataModule has ink = 1, because `invert` is true: leave it",
        ),
    ):
        data = images(root, invert=invert)
        data.setup("test")
        with pytest.raises(ValueError, match=text):
            data.meet(weights, "w")
    light = images(folder(tmp_path / "light", invert=True), invert=False)
    light.setup("test")
    light.meet(INK, "w")  # their ink is 1 as they are


def test_ink_is_1_whichever_way_it_is_drawn(tmp_path: Path) -> None:
    dark, light = (images(folder(tmp_path / str(i), invert=bool(i)), invert="ink") for i in (0, 1))
    for data in (dark, light):
        data.setup("test")
        assert data.preparation == Preparation(28, 1, upright=True, invert=True)
        data.meet(INK, "omni")
    assert torch.allclose(support(dark), support(light), atol=1 / 255)
    described = {"class_path": "mamllit.data.ImageFolderDataModule", "init_args": {"image_size": 28, "channels": 1}}
    described["init_args"]["invert"] = "ink"  # type: ignore[index]
    assert preparation_of(described) == dark.preparation
    with pytest.raises(ValueError, match="has ink = 1, because `invert` is ink: leave it at auto"):
        dark.meet(Preparation(28, 1, upright=True), "own")


def test_a_word_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invert is 'always'; it must be true, false, 'auto' or 'ink'"):
        images(tmp_path, invert="always")


def test_omniglot_is_as_in_the_paper_for_all_weights() -> None:
    data = OmniglotDataModule("nowhere")
    data.pools = Own(light=0).load()
    assert data.preparation == INK
    data.meet(INK, "omni")
    with pytest.raises(ValueError, match="were trained with white = 1, but OmniglotDataModule has ink = 1: use weights"):
        data.meet(Preparation(28, 1), "own")


def test_the_checkpoints_that_come_with_mamllit_say_what_they_saw() -> None:
    seen = {name: preparation_of(read(name)[0].data) for name in names()}
    assert {name: how for name, how in seen.items() if "omniglot" in name} == {n: INK for n in seen if "omniglot" in n}
    assert len(seen) >= 3


def test_who_says_nothing_meets_nothing() -> None:
    data = Own()
    data.setup("test")
    weights_meet(data, {"class_path": "own.Birds", "init_args": {}}, "birds")
    weights_meet(None, {"preparation": INK.as_dict()}, "omni")
    assert not data.inverted
    weights_meet(data, {"preparation": INK.as_dict()}, "omni")
    assert data.inverted
    with pytest.raises(ValueError, match=r"the checkpoint's `preparation` of its images cannot be used: .*'colour'"):
        weights_meet(data, {"preparation": {"colour": 1}}, "forged")


def test_a_preparation_is_plain_values() -> None:
    assert Preparation(**INK.as_dict()) == INK
    assert {type(value) for value in INK.as_dict().values()} <= {int, bool, float}
    assert np.isclose(INK.std, 1)
