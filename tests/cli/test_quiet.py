"""A normal run says nothing that its user cannot act on."""

import sys
import warnings
from pathlib import Path

import pytest
from cli_runs import command

from mamllit import cli


@pytest.mark.filterwarnings("default")
def test_a_fit_and_its_test_warn_of_nothing_and_advertise_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["mamllit"])
    with warnings.catch_warnings(record=True) as seen, caplog.at_level("INFO"):
        warnings.resetwarnings()
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", ResourceWarning)
        cli.run(
            command("fit", tmp_path, "--trainer.max_steps", "2", "--wandb", "offline", "--trainer.num_sanity_val_steps", "1")
        )
    assert [str(warning.message) for warning in seen] == []
    assert "litlogger" not in caplog.text
    assert "Tip" not in caplog.text
