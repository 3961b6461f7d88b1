"""Sizes of the network that come from the data, and those that contradict it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import QUIET, command, short

from mamllit import cli
from mamllit.backbones import MLP, Conv4
from mamllit.cli.agreement import agree, networks, sizes

pytestmark = QUIET
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def model(**arguments: Any) -> dict[str, Any]:
    backbone = {"class_path": "mamllit.backbones.Conv4", "init_args": arguments}
    return {"method": {"class_path": "mamllit.methods.MAML", "init_args": {"backbone": backbone}}}


def data(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"mamllit.data.{kind}DataModule", "init_args": arguments}


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (data("Omniglot", ways=20), {"out_features": 20, "in_channels": 1, "image_size": 28, "in_features": 784}),
        (data("MiniImagenet", ways=5), {"out_features": 5, "in_channels": 3, "image_size": 84, "in_features": 21168}),
        (
            data("ImageFolder", ways=3, image_size=32, channels=1),
            {"out_features": 3, "in_channels": 1, "image_size": 32, "in_features": 1024},
        ),
        (data("Sine"), {"out_features": 1}),
    ],
)
def test_sizes_come_from_the_data(described: dict[str, Any], expected: dict[str, int]) -> None:
    assert sizes(described) == expected
    config = model(in_channels=expected.get("in_channels", 1), out_features="data", filters=7)
    agree(config, described)
    ((network, _),) = networks(config)
    assert network["init_args"]["out_features"] == expected["out_features"]
    assert network["init_args"]["filters"] == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"in_channels": 1}, r"takes images with 1 channels \(in_channels\), but those of the data have 3; give both"),
        ({"image_size": 28}, r"takes images of side 28 \(image_size\), but those of the data have side 84; .*leave image_size"),
        ({"out_features": 20}, r"the network has 20 outputs \(out_features\), but an episode of the data has 5 ways; give"),
    ],
)
def test_a_contradiction_is_explained(arguments: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        agree(model(**arguments), data("MiniImagenet", ways=5))
    agree(model(out_features=None), data("MiniImagenet", ways=5))  # no head: the features


@pytest.mark.parametrize(("method", "encodes"), [("MAML", False), ("PrototypicalNetworks", True), ("NeuralStatistician", True)])
def test_a_network_that_only_encodes_has_any_number_of_outputs(method: str, encodes: bool) -> None:
    config = model(out_features=64)
    config["method"]["class_path"] = f"mamllit.methods.{method}"
    if encodes:
        agree(config, data("MiniImagenet", ways=5))
    else:
        with pytest.raises(ValueError, match="the network has 64 outputs"):
            agree(config, data("MiniImagenet", ways=5))


def test_what_the_data_does_not_tell_needs_a_number() -> None:
    with pytest.raises(ValueError, match=r"in_channels of mamllit\.backbones\.Conv4 is left to the data, but mamllit"):
        agree(model(in_channels="data"), data("Sine"))
    for make in (Conv4, MLP):
        with pytest.raises(ValueError, match=r"is 'data', which only the command line fills in from the DataModule; gi"):
            make()


def test_no_experiment_contradicts_itself() -> None:
    for path in EXPERIMENTS.rglob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        if "class_path" in config.get("data", {}) and config["data"]["class_path"].startswith("mamllit.") and "model" in config:
            agree(config["model"], config["data"])


def test_the_command_line_fills_in_and_writes_down_what_it_took(tmp_path: Path) -> None:
    settings = yaml.safe_load(Path(command("fit", tmp_path)[2]).read_text())
    settings["model"]["init_args"]["method"]["init_args"]["backbone"]["init_args"].pop("out_features")
    (tmp_path / "sine.yaml").write_text(json.dumps(settings))
    arguments = short(tmp_path / "runs")
    arguments[2] = str(tmp_path / "sine.yaml")
    done = cli.run(arguments)
    assert done.model.method.backbone.out_features == 1
    written = yaml.safe_load((tmp_path / "runs" / "seed_0" / "config.yaml").read_text())
    ((network, _),) = networks(written["model"])
    assert network["init_args"]["out_features"] == 1
