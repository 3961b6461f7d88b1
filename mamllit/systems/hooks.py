"""Takes out of the training loop what costs time at every step and does nothing there.

Lightning calls every hook of every callback at every step, each inside a profiler context whose name it formats first: about
40 calls that do nothing, a tenth of a millisecond or more, where a compiled sine step takes half of one. It skips a hook that
is not callable, so those that nobody overrides are set to None on the instance.
"""

import os

import lightning as L
import torch

PER_STEP = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


def skip_driver_checks(device: torch.device) -> None:
    """On a CPU, let PyTorch's optimisers look for a CUDA device in the quick way, which remembers that there is none.

    Lightning asks for the look through NVML, which is safe before a fork but loads the driver library anew each time; an
    optimiser looks at each step, which takes up to a third of a millisecond.
    """
    if device.type == "cpu":
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def skip_empty_hooks(trainer: L.Trainer) -> None:
    """Disable the per-step hooks that the trainer's callbacks and its module inherit unchanged from Lightning."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    owners = [*((callback, L.Callback) for callback in callbacks), (trainer.lightning_module, L.LightningModule)]
    for owner, base in owners:
        for name in PER_STEP:
            if name not in vars(owner) and getattr(type(owner), name) is getattr(base, name):
                setattr(owner, name, None)
