"""What an older version left: a run whose configuration names no system. It is tested, trained on, exported and adapted."""

import shutil
from pathlib import Path

import pytest
import yaml
from cli_runs import QUIET, REPOSITORY, SINE, result
from toy_runs import toy_folders, toy_image

from mamllit import cli
from mamllit.cli.program import read
from mamllit.inference import Settings, adapt_folder
from mamllit.pretrained.export import export

pytestmark = QUIET
OLDER = REPOSITORY / "tests" / "older_run"  # a fit of commit 70c921e, two iterations on the images that `older` makes


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the images and the run as they lay when the run was made; the run's directory."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        for kind, name in enumerate("abc"):
            for i in range(6):
                toy_image(Path("images") / split / f"{split}_{name}" / f"{i}.png", kind, i)
    return Path(shutil.copytree(OLDER, "runs/older/seed_0"))


def test_an_older_run_is_tested_trained_on_exported_and_adapted(older: Path) -> None:
    settings, then = ["-c", str(older / "config.yaml"), "--ckpt_path", "last"], result(older)
    assert "class_path" not in yaml.safe_load((older / "config.yaml").read_text())["model"]

    cli.run(["test", *settings])
    for name, entry in then["results"].items():
        assert result(older)["results"][name]["mean"] == pytest.approx(entry["mean"], abs=1e-6), name

    exported = export(older)
    support, query = toy_folders(Path("own"))
    assert adapt_folder(support, query, settings=Settings(checkpoint=exported)).probabilities.shape == (9, 3)

    more = ["--model.method.init_args.first_order", "true", "--trainer.max_steps", "3", "--test_after_fit", "false"]
    done = cli.run(["fit", *settings, *more])
    assert (done.trainer.global_step, done.model.method.first_order) == (3, True)
    cli.run(["fit", "-c", str(older / "config.yaml"), "--run_name", "again", "--test_after_fit", "false"])
    written = yaml.safe_load(Path("runs/older/again/config.yaml").read_text())["model"]
    assert set(written) == {"class_path", "init_args"} and written["class_path"].endswith(".MetaLearner")


@pytest.mark.parametrize("named", [True, False])
def test_settings_of_the_model_are_changed_with_and_without_init_args(named: bool, tmp_path: Path) -> None:
    document, file = yaml.safe_load(Path(SINE).read_text()), tmp_path / "sine.yaml"
    file.write_text(yaml.safe_dump(document if named else {**document, "model": document["model"]["init_args"]}))
    long = read(file, more=["--model.init_args.log_every", "7", "--model.init_args.method.init_args.inner_lr", "0.5"])
    short = read(file, more=["--model.log_every", "7", "--model.method.inner_lr", "0.5"])
    middle = read(file, more=["--model.log_every", "7", "--model.method.init_args.inner_lr", "0.5"])
    assert long.config.model == short.config.model == middle.config.model
    assert (long.config.model.init_args.log_every, long.config.model.init_args.method.init_args.inner_lr) == (7, 0.5)


def test_a_misspelt_setting_of_the_model_is_refused_in_few_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(Path(SINE), more=["--model.logevery", "7"])
    said = capsys.readouterr().err
    assert "Option 'logevery' is not accepted" in said
    assert "Subtypes" not in said and "NoneType" not in said
