"""Checkpoints and runs made by somebody else: nothing in them is run, whatever the command."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cli_runs import QUIET, command, result, short
from toy_runs import toy_config, toy_run

from mamllit import cli
from mamllit.pretrained.export import export
from mamllit.runs.checkpoint_io import DurableCheckpointIO, ForeignCode, load, newest, read

pytestmark = QUIET


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def forged(fitted: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A run whose newest checkpoint by its step has code in it: `root`, `run`, `path`, `harm`."""
    root, harm = tmp_path / "runs", tmp_path / "harm"
    shutil.copytree(fitted.root, root)
    path = root / "seed_0" / "checkpoints" / "step99.ckpt"
    torch.save({"global_step": 99, "state_dict": {}, "extra": Code(harm)}, path)
    return SimpleNamespace(root=root, run=root / "seed_0", path=path, harm=harm)


def test_code_beside_the_checkpoint_is_passed_over(forged: SimpleNamespace) -> None:
    arguments = short(forged.root, "--ckpt_path", "last")
    arguments[arguments.index("--trainer.max_steps") + 1] = "23"
    with pytest.warns(
        UserWarning, match=r"step99\.ckpt names posix\.system, whose code would be run; it is not loaded.*skipped"
    ):
        assert cli.run(arguments).trainer.global_step == 23
    assert not forged.harm.exists()


@pytest.mark.slow
def test_code_in_the_checkpoint_is_refused(forged: SimpleNamespace) -> None:
    for verb in ("fit", "validate", "test"):
        with pytest.raises(ForeignCode, match=r"names posix\.system, whose code would be run; it is not loaded"):
            cli.run(command(verb, forged.root, "--ckpt_path", str(forged.path)))
    forged.path.replace(forged.run / "checkpoints" / "last.ckpt")
    with pytest.raises(ForeignCode, match="trust its package with --trusted"):
        cli.run(command("test", forged.root))
    assert not forged.harm.exists()


def test_nobody_asks_for_code(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="weights_only is False, but a checkpoint is always loaded as tensors and plain values"
    ):
        cli.run(short(tmp_path, "--weights_only", "false"))


def test_the_environment_cannot_allow_code(forged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for call in (lambda: load(forged.path), lambda: DurableCheckpointIO().load_checkpoint(forged.path, weights_only=False)):
        with pytest.raises(ForeignCode, match=r"names posix\.system"):
            call()
    assert not forged.harm.exists()


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_hyper_parameters_of_a_checkpoint_are_not_settings(verb: str, fitted: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(fitted.root, tmp_path / "runs")
    path, harm = tmp_path / "runs" / "seed_0" / "checkpoints" / "last.ckpt", tmp_path / "harm"
    checkpoint = torch.load(path, weights_only=True)
    harmful = {"class_path": "os.system", "init_args": {"command": f"touch {harm}"}}
    checkpoint["hyper_parameters"] = {"optimizer": harmful, "report_step": 0}
    torch.save(checkpoint, path)
    more = ["--trainer.max_steps", "23", "--test_after_fit", "false"] if verb == "fit" else []
    done = cli.run(command(verb, tmp_path / "runs", "--ckpt_path", str(path), *more))
    assert not harm.exists()
    assert done.model.report_step == 1
    assert result(tmp_path / "runs" / "seed_0")["steps_done"] == (23 if verb == "fit" else 22)


def test_a_run_whose_configuration_names_code_is_not_exported(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    for harmful in (
        {"class_path": "os.system", "init_args": {"command": f"touch {harm}"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(harm)]}},
    ):
        config = toy_config()
        config["model"]["method"]["init_args"]["backbone"] = harmful
        run = toy_run(tmp_path / harmful["class_path"], config=config)
        with pytest.raises(ValueError, match=rf"names classes outside mamllit, torch\.nn: {harmful['class_path']}.*--trusted"):
            export(run)
    assert not harm.exists()


def test_one_word_trusts_a_package_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "import torch\nclass Net(torch.nn.Linear): pass\nclass Note:\n    def __init__(self): self.text = 'kept'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mynets  # type: ignore[import-not-found]

    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 1, "note": mynets.Note()}, path)
    with pytest.raises(ForeignCode, match=r"names mynets\.Note, whose code"):
        read(path)
    assert load(path, ["mynets"])["note"].text == "kept"
    assert newest(tmp_path, trusted=["mynets"]) == path
    for wrong in ("mynet", "mynets.Note", "os"):
        with pytest.raises(ForeignCode):
            load(path, [wrong])
    sys.modules.pop("mynets")


def test_a_function_of_a_trusted_package_is_no_class(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "extra": Code(tmp_path / "harm")}, tmp_path / "a.ckpt")
    with pytest.raises(ForeignCode, match=r"names posix\.system, which is not a class of posix; it is not loaded"):
        load(tmp_path / "a.ckpt", ["posix"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"global_step": "3"}], ids=["list", "no step", "text"])
def test_what_is_no_checkpoint_of_a_run_is_passed_over(content: Any, tmp_path: Path) -> None:
    torch.save({"global_step": 5}, tmp_path / "last.ckpt")
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.warns(UserWarning, match=r"other\.ckpt cannot be read \(.*\); using last\.ckpt of step 5"):
        assert newest(tmp_path) == tmp_path / "last.ckpt"


def test_an_exported_configuration_is_still_yaml_alone(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'harm'}']")
    with pytest.raises(yaml.YAMLError):
        export(run)
    assert not (tmp_path / "harm").exists()
