"""One small run of the command line that these tests share."""

import contextlib
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from cli_runs import PUBLISHED, command

from mamllit import cli


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread, for these tensors are tiny; and not pytest's arguments, of which LightningCLI would warn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mamllit"])
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One small run of 22 iterations, for all files: `root`, its directory `run`, what it printed. Who writes copies it."""
    root = tmp_path_factory.mktemp("fitted")
    with alone(), contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.run(command("fit", root, "--results.published", PUBLISHED))
    return SimpleNamespace(root=root, run=root / "seed_0", printed=printed.getvalue())
