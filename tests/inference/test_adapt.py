"""A checkpoint on a user's folders: what is predicted, what is written, what is refused."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from toy_runs import SIDE, toy_config, toy_folders, toy_image, toy_method, toy_run

from mamllit.core.episode import Examples
from mamllit.inference import Outcome, Preparation, Settings, adapt_folder
from mamllit.inference.classifier import classify
from mamllit.inference.images import read_images
from mamllit.pretrained.export import export


@pytest.fixture
def toy(tmp_path: Path) -> SimpleNamespace:
    """A checkpoint of three ways, and folders with two support and three query images of each of three classes."""
    checkpoint = export(toy_run(tmp_path / "run"))
    support, query = toy_folders(tmp_path)
    return SimpleNamespace(checkpoint=checkpoint, support=support, query=query, out=tmp_path / "out")


def adapted(toy: SimpleNamespace, **changes: Any) -> Outcome:
    given = vars(toy) | changes
    folders = {name: given.pop(name) for name in ("support", "query", "out")}
    return adapt_folder(**folders, settings=Settings(**given))


def rows(toy: SimpleNamespace) -> list[dict[str, str]]:
    with open(toy.out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_and_contact_sheet_are_written(toy: SimpleNamespace) -> None:
    found = adapted(toy)
    written = rows(toy)
    assert list(written[0]) == ["file", "predicted", "true", "unsure", "nearest", "p(a)", "p(b)", "p(c)"]
    assert [row["file"] for row in written] == [f"{name}/{i}.png" for name in "abc" for i in range(3)]
    assert [row["true"] for row in written] == list("aaabbbccc")
    for row, probabilities in zip(written, found.probabilities, strict=True):
        values = {name: float(row[f"p({name})"]) for name in "abc"}
        assert list(values.values()) == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(values, key=values.__getitem__)
        assert (toy.support / row["nearest"]).is_file()
    with Image.open(toy.out / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert sorted(path.name for path in toy.out.iterdir()) == ["contact_sheet.png", "predictions.csv", "report.html"]


def test_bars_of_three_directions_are_told_apart(toy: SimpleNamespace) -> None:
    found = adapted(toy, steps=10)
    assert found.hits[1] == 9
    assert found.hits[0] >= 7  # an untrained network with an adapted head does that; chance is 3
    assert found.head == "maml, 10 inner steps, inductive batch norm"
    assert found.estimates[0].images == 6 and found.estimates[0].folds == 5


def test_the_same_is_predicted_as_by_the_method_itself(toy: SimpleNamespace) -> None:
    found = adapted(toy, batch_norm="transductive")
    how, method = Preparation(SIDE, 1), toy_method()
    support = Examples(read_images(sorted(toy.support.rglob("*.png")), how), torch.arange(3).repeat_interleave(2), 3)
    query = read_images(sorted(toy.query.rglob("*.png")), how)
    expected = method.predict(method.adapt(support, 3), query)  # 3: the checkpoint's report_step
    assert found.head == "maml, 3 inner steps, transductive batch norm"
    assert found.temperature is not None
    assert torch.allclose(found.probabilities, (expected / found.temperature).softmax(-1), atol=1e-6)


def test_inductive_predictions_do_not_depend_on_the_other_query_images(toy: SimpleNamespace) -> None:
    whole = adapted(toy), adapted(toy, batch_norm="transductive")
    for path in [*(toy.query / "b").iterdir(), *(toy.query / "c").iterdir()]:
        path.unlink()
    fewer = adapted(toy), adapted(toy, batch_norm="transductive")
    assert torch.allclose(fewer[0].probabilities, whole[0].probabilities[:3], atol=1e-6)
    assert not torch.allclose(fewer[1].probabilities, whole[1].probabilities[:3], atol=1e-3)


def test_many_images_are_predicted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    method, query = toy_method(), torch.rand(7, 1, SIDE, SIDE)
    support = Examples(torch.rand(6, 1, SIDE, SIDE), torch.arange(3).repeat_interleave(2), 3)
    whole = classify(method, support, query, 2, "inductive")
    monkeypatch.setattr("mamllit.inference.classifier.AT_ONCE", 3)
    assert torch.allclose(classify(method, support, query, 2, "inductive"), whole, atol=1e-6)
    assert not whole.requires_grad


def test_classes_of_different_size_weigh_the_same(toy: SimpleNamespace) -> None:
    toy_image(toy.support / "a" / "2.png", 0, 2)
    toy_image(toy.support / "a" / "3.png", 0, 3)
    found = adapted(toy)
    repeated = [note for note in found.notes if "repeated" in note]
    assert [note.split(" to weigh")[0] for note in repeated] == [f"class {n}: its 2 support images repeated" for n in "bc"]
    method, how = toy_method(), Preparation(SIDE, 1)
    files = [*sorted((toy.support / "a").iterdir()), *(sorted((toy.support / n).iterdir()) * 2 for n in "bc")]
    files = [file for entry in files for file in (entry if isinstance(entry, list) else [entry])]
    support = Examples(read_images(files, how), torch.arange(3).repeat_interleave(4), 3)
    expected = classify(method, support, read_images(sorted(toy.query.rglob("*.png")), how), 3, "inductive")
    assert found.temperature is not None
    assert torch.allclose(found.probabilities, (expected.log() / found.temperature).softmax(-1), atol=1e-5)


def test_a_flat_query_folder_has_no_truth(toy: SimpleNamespace, tmp_path: Path) -> None:
    toy_image(tmp_path / "flat" / "one.png", 0, 1)
    toy_image(tmp_path / "flat" / "others" / "two.png", 1, 1)
    found = adapted(toy, query=tmp_path / "flat")
    assert found.truth == (None, None)
    assert found.hits == (0, 0)
    assert [(row["file"], row["true"]) for row in rows(toy)] == [("one.png", ""), ("others/two.png", "")]


def test_a_data_module_of_one_s_own_needs_a_preparation(toy: SimpleNamespace, tmp_path: Path) -> None:
    config = toy_config(data={"class_path": "own.Birds", "init_args": {}})
    checkpoint = export(toy_run(tmp_path / "other", config=config))
    with pytest.raises(ValueError, match=r"trained with own\.Birds, whose image prep"):
        adapted(toy, checkpoint=checkpoint)
    assert len(adapted(toy, checkpoint=checkpoint, preparation=Preparation(SIDE, 1)).query) == 9


def test_names_of_any_letters_are_predicted_written_and_drawn(toy: SimpleNamespace) -> None:
    """A class whose accent is a letter of its own in one folder, one in letters that no font here has, and a file whose name is
    no text."""
    (toy.support / "a").rename(toy.support / "e\u0301")
    (toy.query / "a").rename(toy.query / "\u00e9")
    for folder in (toy.support, toy.query):
        (folder / "b").rename(folder / "\u732b")
    odd = os.fsdecode(b"g\xff.png")
    (toy.query / "c/0.png").rename(toy.query / "c" / odd)
    found = adapted(toy)
    assert found.hits[1] == 9
    assert found.notes[-1] == "contact_sheet.png lacks letters of some class names: no font here has them"
    written = (toy.out / "predictions.csv").read_bytes()
    assert b"c/g\xff.png," in written and "p(c),p(e\u0301),p(\u732b)".encode() in written
    assert "c/g\ufffd.png" in (toy.out / "report.html").read_text(encoding="utf-8")


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_another_number_of_classes_is_refused(toy: SimpleNamespace) -> None:
    toy_image(toy.support / "d" / "1.png", 0, 0)
    with pytest.raises(
        ValueError,
        match=r"^the checkpoint takes exactly 3 classes, since its network has 3 outputs; the support folder has 4: a, b, c, "
        r"d\. Use another head on its features \(--head logistic\), which takes any number, a checkpoint for 4 ways "
        r"\(`data\.ways` and `out_features`\), or 3 sub-folders$",
    ):
        adapted(toy)
    assert not toy.out.exists()


def test_one_class_is_none(toy: SimpleNamespace, tmp_path: Path) -> None:
    toy_image(tmp_path / "one" / "d" / "1.png", 0, 0)
    with pytest.raises(ValueError, match=r"^at least 2 classes are needed, one sub-folder each; the support folder has 1: d$"):
        adapted(toy, support=tmp_path / "one")


def test_folders_that_would_be_misread_are_refused(toy: SimpleNamespace) -> None:
    with pytest.raises(
        ValueError, match=r"^the query folder \S+/support/c is a class folder of the support folder \S+/support: ke"
    ):
        adapted(toy, query=toy.support / "c")
    (toy.support / "a").rename(toy.support / "\u00e9")
    (toy.support / "b").rename(toy.support / "e\u0301")
    with pytest.raises(ValueError, match=r"^two class names only look the same, 'e\\u0301' and '\\xe9': rename one$"):
        adapted(toy)


def test_a_regression_is_refused(toy: SimpleNamespace, tmp_path: Path) -> None:
    config = toy_config()
    config["model"]["method"]["init_args"]["objective"] = {"class_path": "mamllit.objectives.Regression"}
    with pytest.raises(ValueError, match=r"^the checkpoint was not trained to classify: its metric is mse"):
        adapted(toy, checkpoint=export(toy_run(tmp_path / "other", config=config)))


def test_unreadable_images_of_both_folders_are_listed_at_once(toy: SimpleNamespace) -> None:
    (toy.support / "a" / "0.png").write_bytes(b"")
    (toy.query / "c" / "1.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"2 of 15:\n  - \S+support/a/0\.png: .*\n  - \S+query/c/1\.png: "):
        adapted(toy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_norm": "both"}, "^batch_norm is 'both'; it must be 'inductive' or 'transductive'"),
        ({"steps": -1}, "^steps is -1; it must be >= 0"),
        (
            {"head": "nearest_mean", "steps": 3},
            "^steps is 3, but the head nearest_mean takes no inner steps; those that do are",
        ),
        ({"checkpoint": None, "batch_norm": "transductive"}, "^batch_norm is 'transductive', which needs a checkpoint"),
        ({"unsure": 1.5}, "^unsure is 1.5; it is a probability, from 0 to 1"),
        ({"features": "timm:test_vit"}, "^a checkpoint has its own network: give a checkpoint, or features"),
        (
            {"head": "svm"},
            "^head is 'svm'; the heads of maml_toy_3way are maml, logistic, nearest_mean, euclidean_mean, nearest_image,",
        ),
        ({"folds": 1}, "^folds is 1; it must be >= 2, or left out for leave-one-out of up to 50 images"),
    ],
)
def test_wrong_arguments_are_refused(toy: SimpleNamespace, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(toy, **changes)


def test_an_unknown_checkpoint_is_refused(toy: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint is named 'maml_nothing'"):
        adapted(toy, checkpoint="maml_nothing")


def test_an_out_that_cannot_be_written_is_told_before_the_work(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamllit.inference.adapt.read_images", lambda *_: pytest.fail("images were read"))
    toy.out.write_text("a file")
    with pytest.raises(FileExistsError, match=r"cannot write to the folder \S+/out \(File exists\); name another with --out"):
        adapted(toy)
    with pytest.raises(NotADirectoryError, match=r"cannot write to the folder \S+/out/x \(Not a directory\)"):
        adapted(toy, out=toy.out / "x")


def test_a_classifier_that_cannot_be_written_is_told_before_the_work(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mamllit.inference.adapt.read_images", lambda *_: pytest.fail("images were read"))
    settings = Settings(checkpoint=toy.checkpoint)
    (toy.out / "own.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot write \S+/own\.safetensors \(it is a folder\); name another file with --save"):
        adapt_folder(toy.support, toy.query, toy.out, settings, save=toy.out / "own.safetensors")


def test_an_out_among_the_images_is_refused(toy: SimpleNamespace) -> None:
    """The contact sheet is an image: it would be predicted, or learnt, the next time."""
    for out in (toy.query, toy.query / "adapted", toy.support / "a"):
        with pytest.raises(ValueError, match=rf"^out is {out}, in the folder of images \S+: the contact sheet would be taken"):
            adapted(toy, out=out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_out_without_permission_is_told(toy: SimpleNamespace) -> None:
    toy.out.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="cannot write to the folder"):
        adapted(toy)
