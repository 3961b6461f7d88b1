"""`mamllit export` and `mamllit adapt` as a user calls them."""

import sys
from pathlib import Path

import pytest
from toy_runs import toy_folders, toy_result, toy_run

from mamllit import cli
from mamllit.cli.commands import COMMANDS


def mamllit(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mamllit", *map(str, words)])
    cli.main()


def test_an_export_says_what_the_weights_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = toy_result(fit={"steps_asked": 40, "started_from": {"name": "features", "steps_done": 6000, "seed": 0}})
    mamllit(monkeypatch, "export", toy_run(tmp_path / "run", result=begun), "--out", tmp_path / "toy.safetensors")
    assert "trained for 6,000 + 30 of 40 iterations; measured: " in capsys.readouterr().out


def test_from_a_run_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mamllit(monkeypatch, "export", toy_run(tmp_path / "run"), "--ckpt", "last", "--out", tmp_path / "toy.safetensors")
    printed = capsys.readouterr().out
    size = (tmp_path / "toy.safetensors").stat().st_size
    assert f"checkpoint: {tmp_path}/toy.safetensors ({size:,} bytes, " in printed
    assert "trained for 30 of 40 iterations; measured: accuracy after 3 steps: paper 0.95 ± 0.004" in printed
    support, query = toy_folders(tmp_path, shots=(1, 2, 2))
    mamllit(
        monkeypatch, "adapt", "--checkpoint", tmp_path / "toy.safetensors", "--support", support, "--query", query,
        "--out", tmp_path / "out", "--steps", 5, "--batch_norm", "transductive",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "class a: its 1 support image repeated to weigh as much as the largest class" in printed
    assert "9 images, 3 classes, toy, maml, 5 inner steps, transductive batch norm; " in printed
    assert "accuracy on the support itself (4 folds, 4 images; chance 33.3%):\n  maml" in printed.replace(
        "leave-one-out", "4 folds"
    )
    assert " of 9 with a known class are right (" in printed
    assert "transductive batch norm: each prediction depends on the other query images" in printed
    for name in ("predictions.csv", "contact_sheet.png", "report.html"):
        assert f": {tmp_path}/out/{name}" in printed
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_an_export_without_a_result_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mamllit(monkeypatch, "export", toy_run(tmp_path / "run", result=toy_result(results={})))
    assert "measured: nothing yet; run `mamllit test` before exporting" in capsys.readouterr().out


def test_what_goes_wrong_is_said_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SystemExit, match=r"^mamllit export: \S+ is not the directory of a complete run of `mamllit fit`; missing: "
    ):
        mamllit(monkeypatch, "export", tmp_path)
    with pytest.raises(SystemExit, match=r"^mamllit adapt: no checkpoint is named 'nothing'"):
        mamllit(monkeypatch, "adapt", "--checkpoint", "nothing", "--support", tmp_path, "--query", tmp_path)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_names_every_argument(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        mamllit(monkeypatch, command, "--help")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    wanted = {
        "adapt": [
            "--checkpoint",
            "--features",
            "--weights",
            "--support",
            "--query",
            "--out",
            "--head",
            "--compare",
            "--folds",
            "--unsure",
            "--save",
            "--cache_dir",
            "--steps",
            "--batch_norm",
            "--trusted",
        ],
        "experiments": ["pattern", "--copy"],
        "export": ["run_dir", "--ckpt", "--out", "--dtype", "--limit", "--trusted"],
        "predict": ["classifier", "query", "--out", "--unsure", "--cache_dir", "--trusted"],
        "results": ["add", "run_dir", "--to"],
        "rollout": ["checkpoint", "--task", "--steps", "--trajectories", "--seed", "--video", "--trusted"],
    }[command]
    missing = [name for name in wanted if name not in printed]
    assert not missing, missing
    assert "preparation" not in printed
