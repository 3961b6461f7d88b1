"""Which code a result comes from."""

import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import lightning as L
import torch

import mamllit


@cache
def commit() -> str | None:
    """The git commit of mamllit's source, with "-dirty" where tracked files differ from it; None outside a clone."""
    git = ["git", "-C", str(Path(mamllit.__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]  # an installed copy may lie inside another repository
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(described, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of mamllit and of the packages that its numbers depend on."""
    physics = {"mujoco": metadata.version("mujoco")} if "mujoco" in sys.modules else {}  # returns differ between its versions
    return physics | {
        "mamllit": mamllit.__version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }
