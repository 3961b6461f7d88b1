"""Rebuilding a method from a checkpoint, and what a checkpoint may not do."""

import copy
import resource
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_runs import BACKBONE, toy_config, toy_method

from mamllit.core.episode import Examples
from mamllit.methods import MAML
from mamllit.objectives import Classification
from mamllit.pretrained import load
from mamllit.pretrained.build import build, fill, rebuild
from mamllit.pretrained.files import Checkpoint, write


def written(path: Path, method: dict | None = None, tensors: dict | None = None) -> Path:
    model = {"method": method or toy_config()["model"]["method"], "report_step": 3}
    write(path, Checkpoint("toy", model, {}, {}), toy_method().state_dict() if tensors is None else tensors)
    return path


def test_load_gives_the_method_with_its_weights(tmp_path: Path) -> None:
    method, original = load(written(tmp_path / "toy.safetensors")), toy_method()
    assert isinstance(method, MAML)
    assert isinstance(method.objective, Classification)
    assert not method.training
    support, query = Examples(torch.rand(6, 1, 16, 16), torch.arange(3).repeat_interleave(2), 3), torch.rand(4, 1, 16, 16)
    expected = original.predict(original.adapt(support, 2), query)
    assert torch.equal(method.predict(method.adapt(support, 2), query), expected)


def method_with(class_path: str, **init_args: object) -> dict:
    method = copy.deepcopy(toy_config()["model"]["method"])
    method["init_args"]["backbone"] = {"class_path": class_path, "init_args": init_args}
    return method


def test_networks_of_torch_are_made() -> None:
    linear = build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}})
    assert isinstance(linear, nn.Linear)
    assert linear.weight.shape == (3, 2)


def test_classes_from_elsewhere_are_all_listed_and_not_imported(tmp_path: Path) -> None:
    method = method_with("evilpackage.Net")
    method["init_args"]["objective"] = {"class_path": "subprocess.Popen", "init_args": {"args": "touch ran"}}
    path = written(tmp_path / "toy.safetensors", method)
    with pytest.raises(
        ValueError,
        match=r"^the checkpoint names classes outside mamllit, torch\.nn: evilpackage\.Net, subprocess\.Popen\. Their "
        r"code would be run; if you trust it, pass "
        r"trusted=\['evilpackage', 'subprocess'\] in Python or --trusted on the command line$",
    ):
        load(path)


@pytest.mark.parametrize(
    "class_path",
    [
        "torch.hub.load",  # not below torch.nn
        "torch.nnx.Linear",
        "mamllitx.Net",
    ],
)
def test_what_only_looks_like_a_safe_package_is_refused(class_path: str) -> None:
    with pytest.raises(ValueError, match=rf"outside mamllit, torch\.nn: {class_path}\. "):
        build([{"a": {"class_path": class_path}}])


@pytest.mark.parametrize(
    "class_path",
    [
        "mamllit.pretrained.export.Path",  # a class, but only imported there
        "mamllit.pretrained.export.export",  # a function
        "mamllit.pretrained.files.Checkpoint",  # a class, but none that computes
        "torch.nn.functional.relu",
    ],
)
def test_only_networks_methods_and_objectives_are_made(class_path: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{class_path} in the checkpoint is not a network, method, objective or world; it is not built"
    ):
        build({"class_path": class_path})


@pytest.mark.parametrize("class_path", ["mamllit.methods.NoSuchMethod", "mamllit.nowhere.Method", "mamllit.cli.os.system"])
def test_a_class_that_is_not_there_is_named(class_path: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^the checkpoint needs the class {class_path}, which this installation does not have"
    ):
        build({"class_path": class_path})


def test_own_classes_are_made_where_they_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownnets.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    pass\nclass Plain:\n    def __init__(self, a):\n        self.a = a\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"class_path": "ownnets.Net", "init_args": {"in_features": 2, "out_features": 3}}
    with pytest.raises(ValueError, match=r"outside mamllit, torch\.nn: ownnets\.Net\."):
        build(config)
    assert type(build(config, trusted=["ownnets"])).__name__ == "Net"
    assert build({"class_path": "ownnets.Plain", "init_args": {"a": [1, {"b": 2}]}}, trusted=["ownnets"]).a == [1, {"b": 2}]


def test_arguments_that_a_class_does_not_take_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "toy.safetensors", method_with("mamllit.backbones.Conv4", filter=3))
    with pytest.raises(
        ValueError, match=r"^mamllit\.backbones\.Conv4 does not take the arguments in the checkpoint \(.*'filter'"
    ):
        load(path)


def test_a_network_alone_is_no_method(tmp_path: Path) -> None:
    path = written(tmp_path / "toy.safetensors", {"class_path": "torch.nn.Identity"})
    with pytest.raises(ValueError, match=r"^the model of toy is a Identity, which is not a mamllit Method"):
        load(path)


def test_tensors_that_do_not_fit_are_all_listed() -> None:
    tensors = toy_method(out_features=4).state_dict()
    tensors["extra"] = tensors.pop("backbone.norms.0.beta")
    with pytest.raises(
        ValueError,
        match=r"^the checkpoint toy does not fit the model: backbone\.norms\.0\.beta is missing from the checkpoint; extra is "
        r"not in the model; backbone\.head\.weight is \[4, 8\] in the checkpoint and \[3, 8\] in the model; "
        r"backbone\.head\.bias is",
    ):
        fill(toy_method(), Checkpoint("toy", {}, {}, {}), tensors)


def hostile(**changes: object) -> dict:
    method = copy.deepcopy(toy_config()["model"]["method"])
    method["init_args"].update(changes)
    return method


def layers(count: int) -> dict:
    layer = {"class_path": "torch.nn.TransformerEncoderLayer", "init_args": {"d_model": 8, "nhead": 2}}
    return {"class_path": "torch.nn.TransformerEncoder", "init_args": {"encoder_layer": layer, "num_layers": count}}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (method_with("torch.nn.Linear", in_features=100_000, out_features=100_000), r"a tensor \[100000, 100000\], but"),
        (method_with("torch.nn.Linear", in_features=10**10, out_features=1), r"in_features is 10,000,000,000; a model"),
        (method_with("mamllit.backbones.MLP", in_features=1, hidden=[40, 10**9], out_features=1), r"hidden is 1,000,000,000; "),
        (hostile(backbone=layers(10**9)), r"num_layers is 1,000,000,000; a model that fills this file has no number above 10"),
        (hostile(backbone=layers(90_000)), r"its configuration creates many more tensors than the file holds"),
        (method_with("torch.nn.LSTM", input_size=1, hidden_size=2, num_layers=10**5), "creates many more tensors than the fil"),
        (hostile(inner_steps=-(10**9)), r"inner_steps is -1,000,000,000; "),
    ],
)  # fmt: skip
def test_a_configuration_that_asks_for_more_than_the_file_holds_is_refused_at_once(
    tmp_path: Path, method: dict, message: str
) -> None:
    path = written(tmp_path / "toy.safetensors", method)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=rf"^the model of toy is not built: .*{message}"):
        load(path)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_what_torch_refuses_to_make_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "toy.safetensors", method_with("torch.nn.Linear", in_features=-1, out_features=2))
    with pytest.raises(ValueError, match=r"^the model of toy cannot be built: Trying to create tensor with negative dimension"):
        load(path)


def test_a_configuration_that_is_nested_too_deeply_is_refused() -> None:
    config: list = []
    for _ in range(2000):
        config = [config]
    with pytest.raises(ValueError, match=r"^the model of toy is not built: its configuration is nested too deeply"):
        rebuild(Checkpoint("toy", {"method": hostile(frozen=config)}, {}, {}), {})


def test_a_trusted_network_that_the_meta_device_does_not_know_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpynets.py").write_text(
        "from mamllit.backbones import Conv4\nclass Net(Conv4):\n    def __init__(self, **arguments):\n"
        "        super().__init__(**arguments)\n        self.scale = float(self.head.bias.detach().numpy().sum())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = written(tmp_path / "toy.safetensors", method_with("numpynets.Net", **BACKBONE))
    assert type(load(path, trusted=["numpynets"]).backbone).__name__ == "Net"
