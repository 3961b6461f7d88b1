"""What an older version left: a run whose configuration names no system. It is tested, trained on, exported and adapted."""

import shutil
from pathlib import Path

import pytest
import yaml
from cli_runs import QUIET, REPOSITORY, result
from toy_runs import toy_folders, toy_image

from mamllit import cli
from mamllit.inference.adapt import adapt_folder
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
    assert len(adapt_folder(exported, support, query).files) == 9

    more = ["--model.method.init_args.first_order", "true", "--trainer.max_steps", "3", "--test_after_fit", "false"]
    done = cli.run(["fit", *settings, *more])
    assert (done.trainer.global_step, done.model.method.first_order) == (3, True)
    cli.run(["fit", "-c", str(older / "config.yaml"), "--run_name", "again", "--test_after_fit", "false"])
    written = yaml.safe_load(Path("runs/older/again/config.yaml").read_text())["model"]
    assert set(written) == {"class_path", "init_args"} and written["class_path"].endswith(".MetaLearner")
