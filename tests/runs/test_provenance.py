"""The commit that a result names: that of a clone, marked where it was changed; none elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mamllit.runs import provenance


@pytest.fixture(autouse=True)
def _not_remembered() -> Iterator[None]:
    provenance.commit.cache_clear()
    yield
    provenance.commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a fresh repository, not yet committed."""
    file = tmp_path / "mamllit" / "__init__.py"
    file.parent.mkdir()
    file.write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(provenance, "mamllit", SimpleNamespace(__file__=str(file)))
    return file


def test_a_clone_gives_its_commit_and_a_changed_one_says_so(package: Path) -> None:
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    head = git(package.parent, "rev-parse", "HEAD").strip()
    assert provenance.commit() == head
    package.write_text("a = 2\n")
    provenance.commit.cache_clear()
    assert provenance.commit() == f"{head}-dirty"


def test_a_copy_that_is_not_tracked_has_none(package: Path) -> None:
    assert provenance.commit() is None


def test_without_git_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None


def test_versions_name_what_the_numbers_hang_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setattr("mamllit.runs.provenance.metadata.version", {"mujoco": "4.0.0"}.get)
    assert provenance.versions()["mujoco"] == "4.0.0"
    monkeypatch.delitem(sys.modules, "mujoco")
    assert set(provenance.versions()) == {"mamllit", "torch", "lightning", "python"}
    assert provenance.versions()["torch"] == torch.__version__
