"""Koch's Omniglot: pairs, their distortions, one-shot trials within an alphabet, and what is refused."""

import math
import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import QUIET
from short_fits import make_trainer

from mamllit.backbones import KochNet
from mamllit.core.tree import item
from mamllit.data import ClassPool, OmniglotPairsDataModule
from mamllit.data.images import ImageDraw
from mamllit.data.pair_draws import HIGH, LOW, NONE, PairDraw, alphabets, distorted, draw_pairs, draw_trials
from mamllit.data.pairs import DRAWERS, drawn_by
from mamllit.engine.evaluation import evaluate
from mamllit.methods import SiameseNetworks
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

pytestmark = QUIET

CHARACTERS = (4, 3, 5)  # of each alphabet
NAMES = tuple(f"{alphabet}/character{c}" for alphabet, n in zip("abc", CHARACTERS, strict=True) for c in range(n))
PEOPLE = 20


def pool_of(side: int = 1, people: int = PEOPLE) -> ClassPool:
    """Drawings whose first pixel is the character and second the person, as far as there are pixels."""
    images = torch.randint(0, 256, (len(NAMES), people, 1, side, side), dtype=torch.uint8)
    images.view(len(NAMES), people, -1)[:, :, 0] = torch.arange(len(NAMES))[:, None]
    if side > 1:
        images.view(len(NAMES), people, -1)[:, :, 1] = torch.arange(people)
    return ClassPool(images.flatten(0, 1), np.arange(len(NAMES) + 1, dtype=np.int64) * people, NAMES)


class Pairs(OmniglotPairsDataModule):
    """Random drawings."""

    def _load(self, download: bool) -> dict[str, ClassPool]:
        torch.manual_seed(0)
        return {split: drawn_by(pool_of(self.image_size), people) for split, people in DRAWERS.items()}


def small(**changes: Any) -> Pairs:
    data = Pairs(**{"root": "", "ways": 3, "image_size": 15, "meta_batch_size": 6, "seed": 0, **changes})
    data.prepare_data()
    return data


def of(pool: ClassPool, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Alphabet, character and person of drawings."""
    character, person = np.divmod(image.numpy(), int(pool.counts[0]))
    return np.searchsorted(alphabets(pool.names), character, side="right") - 1, character, person


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_half_of_the_pairs_are_of_one_character_by_two_people_and_half_of_two_of_one_alphabet() -> None:
    pool = pool_of()
    drawn = draw_pairs(pool, seed=0, split="train", first=0, count=3000)
    alphabet, character, person = of(pool, drawn.image)
    assert (alphabet[:, 0] == alphabet[:, 1]).all()
    same = drawn.same.numpy()
    assert same.tolist() == [True, False] * 1500
    assert ((character[:, 0] == character[:, 1]) == same).all()
    assert (person[same, 0] != person[same, 1]).all()
    assert abs(np.bincount(alphabet[:, 0]) / 3000 - 1 / 3).max() < 0.04  # alphabets, not characters, are equally likely
    assert set(zip(character[~same, 0], character[~same, 1], strict=True)) == {
        (a, b) for start, n in zip((0, 4, 7), CHARACTERS, strict=True) for a in range(start, start + n)
        for b in range(start, start + n) if a != b
    }  # fmt: skip
    assert abs(np.bincount(person[same, 1], minlength=PEOPLE) / 1500 - 1 / PEOPLE).max() < 0.03


def test_each_component_of_a_distortion_is_there_with_chance_one_half_in_each_image() -> None:
    affine = draw_pairs(pool_of(), seed=0, split="train", first=0, count=3000).affine
    assert affine.shape == (3000, 2, 7)
    there = affine != torch.from_numpy(NONE).float()
    assert (there.float().mean((0, 1)) - 0.5).abs().max() < 0.03
    assert (there[:, 0] == there[:, 1]).float().mean() < 0.55
    low, high = (torch.from_numpy(bound).float() for bound in (LOW, HIGH))
    assert ((affine >= low) & (affine <= high)).all()
    assert torch.allclose(affine.amin((0, 1)), low, atol=0.02, rtol=0.01)
    assert torch.allclose(affine.amax((0, 1)), high, atol=0.02, rtol=0.01)


def test_a_pair_is_a_function_of_seed_and_number_alone() -> None:
    whole = draw_pairs(pool_of(), seed=1, split="train", first=0, count=40)
    part = draw_pairs(pool_of(), seed=1, split="train", first=7, count=5)
    for name in PairDraw._fields:
        assert torch.equal(getattr(part, name), getattr(whole, name)[7:12]), name
    assert not torch.equal(draw_pairs(pool_of(), seed=2, split="train", first=0, count=40).image, whole.image)


def test_distortions_move_an_image_as_they_say() -> None:
    image = torch.rand(1, 1, 21, 21)

    def moved(**parts: float) -> torch.Tensor:
        names = ("angle", "shear_x", "shear_y", "scale_x", "scale_y", "shift_x", "shift_y")
        values = {"scale_x": 1.0, "scale_y": 1.0, **parts}
        return distorted(image, torch.tensor([[values.get(name, 0.0) for name in names]]))

    def close(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)

    close(moved(), image)
    close(moved(angle=90.0), torch.rot90(image, 1, (2, 3)))
    close(moved(shift_x=10.0)[..., 2:], image[..., :-2])  # 10 of 105 pixels are 2 of 21
    close(moved(shift_y=-5.0)[..., :-1, :], image[..., 1:, :])
    close(moved(scale_x=2.0)[..., 10], image[..., 10])  # the middle stays
    close(moved(scale_x=2.0)[..., 12], image[..., 11])
    close(moved(shear_x=1.0)[..., 12, 2:], image[..., 12, :-2])  # two rows below the middle: two pixels to the right
    close(moved(shear_y=1.0)[..., 2:, 12], image[..., :-2, 12])


def test_a_training_batch_is_of_episodes_of_one_pair_each() -> None:
    data = small()
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    drawn = next(batches)
    episodes = data.on_after_batch_transfer(drawn, 0).episodes
    assert (episodes.support.x.shape, episodes.query.x.shape) == ((6, 1, 1, 15, 15), (6, 1, 1, 15, 15))
    assert episodes.query.y.tolist() == [[0], [1]] * 3
    assert episodes.support.y.tolist() == [[0]] * 6
    assert drawn.number.tolist() == list(range(6, 12))
    images = data.pools["train"].images[drawn.image] / 255
    plain = small(affine=False).build(drawn).episodes
    assert torch.equal(plain.support.x[:, 0], images[:, 0])
    assert torch.equal(plain.query.x[:, 0], images[:, 1])
    kept = (drawn.affine == torch.from_numpy(NONE).float()).all(-1)
    for part, i in ((episodes.support.x, 0), (episodes.query.x, 1)):
        for pair in range(6):
            assert torch.allclose(part[pair, 0], images[pair, i], atol=1e-4) == bool(kept[pair, i])


# ---- trials ----------------------------------------------------------------------------------------------------------


def test_a_trial_is_within_an_alphabet_and_has_one_person_for_the_support_and_one_for_the_query() -> None:
    pool = drawn_by(pool_of(), DRAWERS["test"])
    number, image = draw_trials(pool, 3, 2, seed=0, split="test", first=0, count=300)
    alphabet, character, person = of(pool, torch.from_numpy(image))
    assert (alphabet == (np.arange(300) % 3)[:, None, None]).all()  # in turn
    assert (character == character[:, :, :1]).all()
    assert all(len(set(row)) == 3 for row in character[:, :, 0].tolist())
    assert (person == person[:, :1]).all()
    assert (person[:, 0, 0] != person[:, 0, 1]).all()
    assert set(person.flatten()) == {0, 1, 2, 3}
    assert len(np.unique(character[2::3, :, 0])) == 5
    part = draw_trials(pool, 3, 2, seed=0, split="test", first=50, count=4)
    assert (part[1] == image[50:54]).all()
    assert (part[0] == number[50:54]).all()


def test_the_people_of_a_split_are_its_own() -> None:
    data = small()
    for split, people in DRAWERS.items():
        persons = data.pools[split].images.view(-1, 225)[:, 1].unique().tolist()
        assert persons == list(range(*people.indices(PEOPLE)))


def test_validation_and_test_are_trials_and_the_other_set_mixes_alphabets() -> None:
    data = small()
    (validation,) = data.evaluation_sets("val")
    assert (validation.episodes, validation.split, validation.ways) == (16, "val", 3)
    within, across = data.evaluation_sets("test")
    assert [(e.name, e.episodes, e.shots, e.queries) for e in (within, across)] == [
        ("within_alphabet", 20, 1, 1),
        ("across_alphabets", 20, 1, 1),
    ]
    assert [e.name for e in small(test_episodes=50).evaluation_sets("test")] == ["within_alphabet[50]", "across_alphabets[50]"]
    data.setup("test")
    one_alphabet = []
    for evaluation in (validation, within, across):
        drawn = data.draw_for(evaluation, 0, evaluation.episodes)
        assert isinstance(drawn, ImageDraw)
        alphabet, _, _ = of(data.pools[evaluation.split], drawn.image)
        one_alphabet.append(bool((alphabet == alphabet[:, :1, :1]).all()))
    assert one_alphabet == [True, True, False]
    episode = item(data.episodes(within).episodes, 3)
    support, query = ((part.x.view(3, -1)[:, :2] * 255).round().int() for part in episode)
    assert torch.equal(support[:, 0], query[:, 0])  # characters
    assert (support[:, 1] != query[:, 1]).all()  # people


def test_a_network_that_always_says_the_same_scores_one_in_n() -> None:
    data = small(image_size=23)
    data.setup("test")
    net = KochNet(1, 23, (2, 2, 2, 2), (2, 2, 2, 2), 8)
    method = SiameseNetworks(net, Classification(), 8, "verification", "as_drawn")
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
    for evaluation in data.evaluation_sets("test"):
        found = evaluate(method, data.episodes(evaluation).episodes, 0)
        torch.testing.assert_close(found, torch.full_like(found, 1 / 3))


def test_koch_s_training_runs_under_a_trainer() -> None:
    """A step is the mean cross-entropy of the pairs; validation and test are trials."""
    data, trainer = small(image_size=23, meta_batch_size=8), make_trainer(3, limit_val_batches=None, val_check_interval=3)
    torch.manual_seed(0)
    method = SiameseNetworks(KochNet(1, 23, (2, 2, 2, 2), (2, 2, 2, 2), 8), Classification(), 8, "verification", "as_drawn")
    learner = MetaLearner(method, lambda params: torch.optim.SGD(params, 0.1), eval_steps=0, report_step=0, log_every=3)
    data.setup("fit")
    trainer.fit(learner, data)
    assert learner.summaries["val"].episodes == 16
    found = trainer.callback_metrics["train/meta_loss"]
    trainer.test(learner, data, verbose=False)
    assert {name: summary.episodes for name, summary in learner.summaries.items() if name != "val"} == {
        "within_alphabet": 20,
        "across_alphabets": 20,
    }
    torch.manual_seed(0)
    plain = SiameseNetworks(KochNet(1, 23, (2, 2, 2, 2), (2, 2, 2, 2), 8), Classification(), 8, "verification", "as_drawn")
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for step in range(3):
        pairs = data.build(data.draw(0, "train", 1, 1, 8 * step, 8)).episodes
        optimizer.zero_grad()
        a, b = (plain.backbone(part.x[:, 0]) for part in pairs)
        p = plain.verify((a - b).abs())[:, 0].sigmoid()
        loss = -torch.where(pairs.query.y[:, 0] == 0, p.log(), (1 - p).log()).mean()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(dict(method.named_parameters()), dict(plain.named_parameters()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 4}, "ways is 4, but an alphabet of the test split has 3 characters; use fewer"),
        (
            {"shots": 3, "queries": 2},
            "an episode needs 5 images of each class (shots + queries), but a class of the test split",
        ),
        ({"test_episodes": 1}, "test_episodes is 1; it must be >= 2"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**changes).setup("test")


def test_a_draw_with_too_few_people_is_refused() -> None:
    message = "an episode needs drawings by 5 people (shots + queries), but the test split has 4; use fewer"
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_trials(drawn_by(pool_of(), DRAWERS["test"]), 3, 5, seed=0, split="test", first=0, count=1)


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_alphabets_are_kochs_numbers() -> None:
    if not (root := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    data = OmniglotPairsDataModule(root, image_size=35, resize="antialias")
    data.prepare_data()
    data.setup("fit")
    sizes = {split: (len(alphabets(pool.names)) - 1, pool.num_classes, len(pool.images)) for split, pool in data.pools.items()}
    assert sizes == {"train": (30, 964, 964 * 12), "val": (10, 307, 307 * 4), "test": (10, 352, 352 * 4)}
    assert math.prod((data.evaluation_sets("val")[0].episodes, data.ways)) == 320
    assert math.prod((data.evaluation_sets("test")[0].episodes, data.ways)) == 400
