"""A normal run says nothing that its user cannot act on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import REPOSITORY, command


@pytest.mark.slow  # a process of its own: what other tests have imported and warned of does not count
def test_a_fit_and_its_test_warn_of_nothing_and_advertise_nothing(tmp_path: Path) -> None:
    words = command("fit", tmp_path, "--trainer.max_steps", "2", "--wandb", "offline", "--trainer.num_sanity_val_steps", "1")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-m", "mamllit.cli", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.findall(r"^.*(?:Warning|litlogger|Tip).*$", said, flags=re.MULTILINE) == []
    assert "paper[20]" in said  # the test's table: it was a whole run
