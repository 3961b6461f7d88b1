"""When and how functions of tensors are compiled, and what happens where that fails.

`torch.compile` cannot differentiate twice through a compiled function, and its front end does not follow every operator through
`torch.func`. Both are avoided: what is handed to it is one opaque function (`allow_in_graph`) with all derivatives of the
inner loop inside, which the back end traces operator by operator; the derivative of the outer loop is made in the same pass.
"""

import itertools
import logging
import shutil
import types
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mamllit.engine.recording import recorded

Backend = Literal["inductor", "recorded"]
log = logging.getLogger(__name__)
Function = Callable[..., tuple[Tensor, ...]]
_numbers = itertools.count()


class Compiler:
    """Compiles the functions of one step. If one fails to compile, it warns once and uses the plain functions from then on.

    `backend`: "inductor" generates code; "recorded" records the operators once and replays them, which saves the time that
    Python spends on vectorising and differentiating (some 40 ms per inner step of a conv net), for a tenth of the wait.
    """

    def __init__(self, backend: Backend = "inductor") -> None:
        self.backend, self.failed = backend, False

    def __call__(self, function: Function) -> Function:
        """`function`, compiled for the shapes of its first call."""
        compiled: list[Function] = []

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            if self.failed:
                return function(*tensors)
            try:
                if not compiled:
                    compiled.append(_compile(function, self.backend))
                return compiled[0](*tensors)
            except Exception as error:  # whatever the compiler raises, the plain function is right, only slower
                result = function(*tensors)  # an error of the function itself is raised here, as it is
                first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"torch.compile failed, so the meta-training step runs uncompiled: {first_line}", stacklevel=2)
                self.failed = True
                return result

        return run


def _compile(function: Function, backend: Backend) -> Function:
    opaque = torch.compiler.allow_in_graph(function)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return opaque(*tensors)

    # a code object of its own: torch.compile counts the compilations of a code object, and gives up after eight
    code = call.__code__.replace(co_name=f"step_{next(_numbers)}")
    own = types.FunctionType(code, call.__globals__, closure=call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, backend=recorded if backend == "recorded" else backend)


def should_compile(setting: bool | Literal["auto"], steps: int, device: torch.device, worth: int = 2000) -> bool:
    """Whether to compile: as asked; for "auto", if there is a compiler and the run has at least `worth` steps.

    Compiling takes half a minute to a minute, and saves from one millisecond (sine) upwards per step. The answer depends on
    nothing but the machine and the run's length, so that a resumed run takes the same path.
    """
    if setting != "auto":
        return setting
    if steps < worth:
        return False
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl")):
        log.warning("compile: auto found no C++ compiler; the meta-training step runs uncompiled")
        return False
    return True
