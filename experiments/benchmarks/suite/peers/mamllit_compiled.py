"""mamllit as `compile: auto` runs it in a training of some length."""

import torch

from suite.peers.mamllit_eager import Mamllit
from suite.problems import Problem


def build(row: Problem, dtype: torch.dtype, device: str) -> Mamllit:
    return Mamllit(row, dtype, device, compiled=True)
