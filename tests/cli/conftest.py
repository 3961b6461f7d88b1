"""One small run of the command line that the tests of a file share."""

import contextlib
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from cli_runs import PUBLISHED, command

from mamllit import cli


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_no_arguments() -> Iterator[None]:
    """One thread, for these tensors are tiny; and not pytest's arguments, of which LightningCLI would warn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mamllit"])
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One small run of 22 iterations: its `root`, its directory `run`, what it printed. Tests that write copy it."""
    root = tmp_path_factory.mktemp("fitted")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.run(command("fit", root, "--results.published", PUBLISHED))
    return SimpleNamespace(root=root, run=root / "seed_0", printed=printed.getvalue())
