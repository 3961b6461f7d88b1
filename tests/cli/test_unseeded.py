"""A run that is not to be seeded does not say that its seed is 0."""

from pathlib import Path

import pytest
from cli_runs import QUIET, result, short

from mamllit import cli

pytestmark = QUIET


def test_a_run_without_a_seed_is_recorded_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")  # of an earlier run in this process
    done = cli.run(short(tmp_path, "--seed_everything", "false"))
    assert Path(done.trainer.default_root_dir) == tmp_path / "unseeded"
    assert result(tmp_path / "unseeded")["seed"] is None
