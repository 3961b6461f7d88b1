"""Runs on disks that are really full or read-only, small ones in memory (as root); and, as anybody, a limit on files' size."""

import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mamllit import cli
from mamllit.callbacks import CleanStop
from mamllit.runs import durable

REPOSITORY = Path(__file__).parents[1]
FIT = [
    "fit", "-c", str(REPOSITORY / "experiments/maml/sine_10shot.yaml"), "-c", str(REPOSITORY / "tests/small.yaml"),
    "--trainer.max_steps", "20", "--checkpoint_last.every_n_train_steps", "5", "--trainer.accelerator", "cpu",
]  # fmt: skip
TRAINED = [4, 9, 14, 19]  # steps whose loss is logged (log_every: 5)

pytestmark = [
    pytest.mark.slow,  # starts processes
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs root, to make a small disk of its own")
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go that find no room: the temporary folder, which is not on that disk."""
    monkeypatch.setattr(sys, "argv", ["mamllit"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(durable, "_private_folder", lambda temporary: Path(temporary) / "mamllit-kept")
    return tmp_path / "mamllit-kept"


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def lock(disk: Path) -> None:
    """A disk that has become read-only: a kernel does so whatever is open, `mount -o remount,ro` only where nothing is."""
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)


def at(patch: pytest.MonkeyPatch, moments: dict[int, Callable[[], Any]]) -> None:
    """Let something happen after these steps."""
    original = CleanStop.on_train_batch_end

    def with_it(self: Any, trainer: L.Trainer, *rest: Any) -> None:
        moments.get(trainer.global_step, lambda: None)()
        original(self, trainer, *rest)

    patch.setattr(CleanStop, "on_train_batch_end", with_it)


def trained(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/meta_loss"]]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("damage", "reason"), [(fill, "No space left on device"), (lock, "Read-only file system")], ids=["full", "read-only"]
)
def test_a_disk_that_fails_for_good_costs_weights_but_no_number(
    damage: Callable[[Path], None], reason: str, disk: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, {7: lambda: damage(disk)})
    with pytest.warns() as said, pytest.raises(OSError, match=rf"its weights could not be saved: .*best\.ckpt \({reason}\)"):
        cli.run([*FIT, "--trainer.default_root_dir", str(disk)])
    texts = [str(warning.message) for warning in said]
    run = disk / "seed_0"
    for file, after in {
        f"the checkpoint {run}/checkpoints/last.ckpt": "the previous one is untouched, and training continues",
        f"the checkpoint {run}/checkpoints/best.ckpt": "there is none yet, and training continues",
        f"{run}/result.json": f"it is kept as {elsewhere}/result.json",
        f"{run}/episodes.csv": f"it is kept as {elsewhere}/episodes.csv",
        f"{run}/csv/version_0/metrics_not_written.csv": f"it is kept as {elsewhere}/metrics_not_written.csv",
        f"the figure {run}/figures/learning_curve.png": "`mamllit test` makes it again",
    }.items():
        assert any(text.startswith(f"cannot write {file} ({reason}); {after}") for text in texts), (file, texts)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=False)["global_step"]
    assert last == 5 if damage is lock else last >= 5  # on a full disk there may be room where an older checkpoint was
    written, kept = trained(run / "csv/version_0/metrics.csv"), trained(elsewhere / "metrics_not_written.csv")
    assert written + kept == TRAINED
    found = result(elsewhere)
    assert found["steps_done"] == 20
    assert set(found["results"]) == {"val", "paper[20]"}
    with (elsewhere / "episodes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20 * 4  # after 0 to 3 steps


def test_a_disk_with_room_again_has_it_all(disk: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, {7: lambda: fill(disk), 12: lambda: (disk / "filler").unlink()})
    with pytest.warns(UserWarning, match=r"cannot write the checkpoint .*last\.ckpt \(No space left on device\)"):
        cli.run([*FIT, "--trainer.default_root_dir", str(disk)])
    run = disk / "seed_0"
    assert trained(run / "csv/version_0/metrics.csv") == TRAINED
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=False)["global_step"] == 20
    assert set(result(run)["results"]) == {"val", "paper[20]"}
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("damage", "reason"), [(fill, "No space left on device"), (lock, "Read-only file system")], ids=["full", "read-only"]
)
def test_such_a_disk_is_refused_at_the_start(damage: Callable[[Path], None], reason: str, disk: Path) -> None:
    damage(disk)
    message = (
        rf"the run directory {disk}/seed_0 cannot be written \({reason}\): free some space, make it writable, or choose another"
    )
    with pytest.raises(OSError, match=message):
        cli.run([*FIT, "--trainer.default_root_dir", str(disk)])


def test_the_tracker_of_a_run_on_a_full_disk_does_not_end_it(
    disk: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B, offline: its process writes a file of its own, and the artifact is a copy of a checkpoint."""
    at(monkeypatch, {7: lambda: fill(disk)})
    with pytest.warns(), pytest.raises(OSError, match="the run finished, but its weights could not be saved"):
        cli.run([*FIT, "--trainer.default_root_dir", str(disk), "--wandb", "offline"])
    assert set(result(elsewhere)["results"]) == {"val", "paper[20]"}


def test_files_that_must_not_grow_cost_weights_but_no_number(tmp_path: Path) -> None:
    """`ulimit -f`, as some clusters have it: a checkpoint is too large, and everything else has room."""
    words = [sys.executable, "-m", "mamllit.cli", *FIT, "--trainer.default_root_dir", str(tmp_path / "runs")]
    limit = 16384
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("mamllit fit: the run finished, but its weights could not be saved: ")
    ), done.stderr
    assert "last.ckpt (File too large); there is none yet, and training continues" in done.stderr
    run = tmp_path / "runs/seed_0"
    assert set(result(run)["results"]) == {"val", "paper[20]"}
    assert trained(run / "csv/version_0/metrics.csv") == TRAINED
    assert list((run / "checkpoints").glob("*.ckpt")) == []
