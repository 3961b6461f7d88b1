"""Sizes on which network and data must agree: taken from the data where the configuration leaves them out, else compared."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from mamllit.backbones.sizes import DATA
from mamllit.data.preparation import preparation_of

NETWORKS = "mamllit.backbones."  # a network of the user's own may mean something else by these words


def agree(model: Any, data: Any) -> None:
    """Fill in the sizes of mamllit's networks in the configuration `model` that are left to the `data`'s.

    Raises:
        ValueError: where a size cannot be known from the data, or contradicts it.
    """
    known = sizes(data)
    for network, encodes in networks(model):
        arguments = network["init_args"]
        for name, value in entries(arguments).items():
            if value == DATA:
                ways = entries(data.get("init_args")).get("ways")
                if name == "out_features" and name not in known and isinstance(ways, int):
                    raise ValueError(f"ways is {ways}; an episode needs at least 2 classes")
                if name not in known:
                    raise ValueError(
                        f"{name} of {network['class_path']} is left to the data, but {data['class_path']} does not set it: "
                        "give a number"
                    )
                arguments[name] = known[name]
            elif encodes and name == "out_features":
                continue  # of features, as many as one likes
            elif name in SENTENCES and name in known and value is not None and value != known[name]:
                text = SENTENCES[name].format(value, known[name])
                raise ValueError(f"{text}; give both the same number, or leave {name} out to take it from the data")


SENTENCES = {
    "out_features": "the network has {} outputs (out_features), but an episode of the data has {} ways",
    "in_channels": "the network takes images with {} channels (in_channels), but those of the data have {}",
    "image_size": "the network takes images of side {} (image_size), but those of the data have side {}",
}


def sizes(data: Any) -> dict[str, int]:
    """What the configuration of a DataModule says of a network's sizes."""
    arguments = entries(data["init_args"]) if "init_args" in data else {}
    ways = arguments.get("ways")
    least = 1 if ways is None else 2  # fewer classes are refused by the data, in its own words
    if ways is None:
        ways = of_class(data["class_path"], "ways")
    found = {"out_features": ways} if isinstance(ways, int) and ways >= least else {}
    if (images := preparation_of({"class_path": data["class_path"], "init_args": arguments})) is not None:
        found |= {"in_channels": images.channels, "image_size": images.image_size}
        found["in_features"] = images.channels * images.image_size**2
    return found


def networks(config: Any, encodes: bool = False) -> Iterator[tuple[Any, bool]]:
    """The networks of mamllit in a configuration, each with whether its method reads its outputs as features."""
    inside = entries(config)
    path = str(inside.get("class_path", ""))
    if path.startswith(NETWORKS):
        if inside.get("init_args") is not None:
            yield config, encodes
    elif "." in path:
        encodes = encodes or bool(of_class(path, "reads_features"))
    for value in inside.values():
        for part in value if isinstance(value, list) else [value]:
            yield from networks(part, encodes)


def of_class(path: str, name: str) -> Any:
    """The attribute `name` of the class at an import path; None where there is none."""
    module, _, kind = path.rpartition(".")
    return getattr(getattr(importlib.import_module(module), kind, None), name, None)


def entries(config: Any) -> dict[str, Any]:
    """A part of a configuration, as read from YAML or as parsed; {} for a plain value."""
    return vars(config) if isinstance(config, Namespace) else dict(config) if isinstance(config, Mapping) else {}
