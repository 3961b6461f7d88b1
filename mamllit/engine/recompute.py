"""A function that keeps only its inputs for the backward pass, and runs again there: the memory of one inner step."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


class RandomState:
    """The state of the random number generators: the CPU's, and that of every device that some tensors lie on."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.cpu = torch.get_rng_state()
        devices = dict.fromkeys(tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta"))
        self.devices = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within, the generators have these states; afterwards they go on as if nothing had been drawn."""
        with ExitStack() as forks:
            forks.enter_context(torch.random.fork_rng(devices=[]))
            for kind in {device.type for device in self.devices}:
                own = [device.index or 0 for device in self.devices if device.type == kind]
                forks.enter_context(torch.random.fork_rng(devices=own, device_type=kind))
            torch.set_rng_state(self.cpu)
            for device, state in self.devices.items():
                torch.get_device_module(device).set_rng_state(state, device)
            yield


class Recomputed(torch.autograd.Function):
    """A function of tensors that keeps only its inputs and runs again in the backward pass, with the same random numbers.

    (torch.utils.checkpoint works by hooks that `torch.func` does not allow.)
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.random = function, RandomState(inputs)
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), ctx.random.restored():
            outputs = ctx.function(*inputs)
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        # a state may carry constants, such as a count of steps
        pairs = [(out, grad) for out, grad in zip(outputs, outer, strict=True) if out.requires_grad]
        own, theirs = zip(*pairs, strict=True) if pairs else ((), ())
        found = iter(torch.autograd.grad(own, wanted, theirs, allow_unused=True) if own else [None] * len(wanted))
        return None, *(next(found) if need else None for need in needed)
