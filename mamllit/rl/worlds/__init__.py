"""Families of tasks to act in."""

from mamllit.rl.worlds.base import Revealed, Step, World
from mamllit.rl.worlds.navigation import Navigation
from mamllit.rl.worlds.tabular import Tabular

__all__ = ["Navigation", "Revealed", "Step", "Tabular", "World"]
