"""Which parameters an inner loop changes, and which networks it cannot run on."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn


def check_no_running_buffers(module: nn.Module) -> None:
    """Raise `ValueError` where a forward pass of `module` would change a buffer.

    A buffer that a forward pass overwrites (batch norm's running statistics) has no meaning per task, and cannot be
    written under `vmap`. Constant buffers are fine.
    """
    running = [
        name
        for name, _ in module.named_buffers()
        if name.rsplit(".", 1)[-1].startswith("running_") or name.endswith("num_batches_tracked")
    ]
    if running:
        raise ValueError(
            f"the module has running buffers, which an inner loop would overwrite: {', '.join(running)}. "
            "Use mamllit.backbones.BatchStatNorm, or build the norm with track_running_stats=False (which mamllit computes "
            "with its own operators: see docs/networks.md)."
        )


def select_adapted(names: Collection[str], frozen: Collection[str] = ()) -> list[str]:
    """The parameter names that the inner loop changes: all of `names` but those matching a pattern in `frozen`.

    Patterns are shell patterns (`*.beta`). Raises `ValueError` if nothing is left to adapt.
    """
    adapted = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in frozen)]
    if not adapted:
        raise ValueError(
            f"no parameter is left to adapt: the patterns {sorted(frozen)} cover all of {sorted(names)}. "
            "Freeze fewer parameters in the inner loop."
        )
    return adapted


def adapted_parameters(module: nn.Module, frozen: Collection[str] = ()) -> list[str]:
    """Names of the parameters that an inner loop changes: frozen neither by a pattern nor by `requires_grad_(False)`.

    Raises `ValueError` if nothing is left to adapt.
    """
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    if not trained:
        raise ValueError(
            f"no parameter is left to adapt: {type(module).__name__} has none that requires a gradient. Freeze fewer layers "
            "(`requires_grad_(False)`) before you give the network to a method."
        )
    return select_adapted(trained, frozen)
