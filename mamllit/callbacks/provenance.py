"""Which code a result comes from."""

import platform
import subprocess
from functools import cache
from pathlib import Path

import lightning as L
import torch

import mamllit


@cache
def commit() -> str | None:
    """The short git commit of mamllit's source, with "-dirty" where tracked files differ from it; None outside a clone."""
    folder = Path(mamllit.__file__).parent
    try:  # an installed copy may lie inside somebody else's repository, where it is not tracked
        for words in (["ls-files", "--error-unmatch", "__init__.py"], ["describe", "--always", "--dirty", "--exclude=*"]):
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of mamllit and of what its numbers hang on."""
    return {
        "mamllit": mamllit.__version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }
