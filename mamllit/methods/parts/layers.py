"""The layers of a network that hold a weight: what a T-net warps, and what a Kronecker-factored Fisher is made of."""

from torch import nn


def weight_layers(backbone: nn.Module) -> list[str]:
    """Names of the layers whose `weight` [outputs, inputs, ...] is a matrix or a convolution's kernel.

    Raises `ValueError` if there is none.
    """
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() >= 2
    ]
    if not names:
        raise ValueError(
            f"{type(backbone).__name__} has no layer with a weight: none of its modules has a `weight` of two or more "
            "dimensions; use a network of linear layers or convolutions"
        )
    return names


def names_in(layer: str) -> tuple[str, str]:
    """The names of a layer's weight and bias among the parameters; the backbone itself is the layer ""."""
    return f"{layer}.weight".lstrip("."), f"{layer}.bias".lstrip(".")
