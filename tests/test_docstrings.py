"""Every example in a docstring runs, and every public class has one, in its own docstring or in that of its file."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

import mamllit

ROOMS = ("backbones", "core.episode", "data", "methods", "objectives", "rl", "systems")
BASES = {
    "EpisodicDataModule",
    "EpisodeBatch",
    "ImageDataModule",
    "InnerLoopMethod",
    "Method",
    "Objective",
    "Distribution",
    "World",
}  # to derive from
PLAIN = {"Evaluation", "Happened", "PlainBatch", "PlainBatches", "Preparation", "Trajectories"}  # records
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mamllit.__path__, "mamllit.")
    if not module.name.endswith("__main__")
    and ".bridges" not in module.name
    and (find_spec("mujoco") is not None or not module.name.endswith((".worlds.locomotion", ".worlds.gym")))  # of an extra
)


def test_every_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    failed: list[str] = []
    for name in MODULES:
        for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
            if test.examples and runner.run(test, out=failed.append).failed:
                failed.append(test.name)
    assert not failed, "".join(failed)


def test_every_public_class_has_an_example() -> None:
    lacking = []
    for room in ROOMS:
        module = importlib.import_module(f"mamllit.{room}")
        names = getattr(module, "__all__", [name for name, value in vars(module).items() if inspect.isclass(value)])
        for name in names:
            found = getattr(module, name)
            if not inspect.isclass(found) or not found.__module__.startswith("mamllit") or name in BASES | PLAIN:
                continue
            own = sys.modules[found.__module__].__doc__ or ""
            if ">>>" not in (found.__doc__ or "") + own:
                lacking.append(f"{found.__module__}.{name}")
    assert not lacking, f"no example in the docstring of {sorted(set(lacking))}, nor of its file"


def test_importing_mamllit_is_fast_and_offers_what_a_user_needs() -> None:
    code = "import sys, mamllit; assert 'torch' not in sys.modules; mamllit.MAML; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(mamllit, name).__name__ == name for name in mamllit.__all__)
    assert set(mamllit.__all__) <= set(dir(mamllit))
    with pytest.raises(AttributeError, match="module 'mamllit' has no attribute 'Maml'; it offers ANIL, "):
        mamllit.Maml  # noqa: B018
