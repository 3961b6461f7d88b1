"""What a user gets wrong is said in one line, and `--debug` shows where; nothing is left behind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from cli_runs import QUIET, REPOSITORY, command, short
from PIL import Image

from mamllit import cli
from mamllit.cli.errors import one_line

pytestmark = QUIET
Say = Callable[..., str]
OMNIGLOT = "experiments/maml/omniglot_5way_1shot.yaml"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    """Runs `mamllit WORDS`, which fails; what it says. The working directory is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mamllit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, str) and "\n" not in ended.value.code, ended.value.code
        assert list((tmp_path / "work").iterdir()) == []
        return ended.value.code

    return call


def fit(config: str, *more: object) -> list[object]:
    return ["fit", "-c", REPOSITORY / config, "--wandb", "disabled", "--trainer.accelerator", "cpu", *more]


def pictures(root: Path) -> Path:
    for c in range(30):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (30, 30), (8 * c, 40 * i, 0)).save(root / f"class{c}" / f"{i}.png")
    return root


def test_a_forgotten_root(said: Say) -> None:
    text = said(*fit(OMNIGLOT))
    assert text.startswith("mamllit fit: ") and text.endswith(" (--debug shows where)")
    assert "data/omniglot" in text and "--data.root" in text


def test_a_wrong_path(said: Say, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in said(*fit(OMNIGLOT, "--data.root", tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("--model.optimizer.init_args.lr", "-1", "learning rate: -1.0"),
        ("--data.meta_batch_size", "0", "meta_batch_size is 0; it must be >= 1"),
        ("--threads", "0", "threads is 0; it must be >= 1"),
        ("--model.method.init_args.inner_steps", "-3", "inner_steps is -3"),
        ("--run_name", "../elsewhere", "run_name is '../elsewhere'; it must stay below default_root_dir"),
        ("--trainer.strategy", "ddp_spawn", "use --trainer.strategy ddp"),
        ("--trainer.val_check_interval", "0", "trainer.val_check_interval is 0; it must be greater than 0"),
        ("--trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch is 0; it must be"),
        ("--trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches is 0; it must be"),
    ],
)
def test_a_number_or_word_out_of_bounds(setting: str, value: str, text: str, said: Say, tmp_path: Path) -> None:
    assert text in said(*short(tmp_path / "runs", setting, value))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("ways", "text"), [("1", "ways is 1; "), ("20", "the network has 5 outputs (out_features), but an e")])
def test_ways(ways: str, text: str, said: Say) -> None:
    assert text in said(*fit(OMNIGLOT, "--data.ways", ways))


def test_too_few_ways_for_a_network_that_is_as_large_as_the_data(said: Say) -> None:
    assert ": ways is 1; an episode needs at least 2" in said(*fit("experiments/own_images.yaml", "--data.ways", "1"))


def test_a_checkpoint_of_another_network(fitted: SimpleNamespace, said: Say, tmp_path: Path) -> None:
    other = ["--ckpt_path", str(fitted.run / "checkpoints" / "last.ckpt"), "--model.method.backbone.hidden", "[10]"]
    for words in (short(tmp_path / "runs", *other), command("test", tmp_path / "runs", *other)):
        text = said(*words)
        assert "the checkpoint is of another network: take the configuration that it was trained with" in text
        assert "size mismatch for method.backbone.layers.0.weight" in text


def test_channels_of_the_network_and_of_the_data(said: Say, tmp_path: Path) -> None:
    backbone = "--model.method.init_args.backbone.init_args."
    more = ["--data.root", pictures(tmp_path / "pictures"), "--data.channels", "3", f"{backbone}in_channels", "1"]
    assert "takes images with 1 channels (in_channels), but those of the data have 3; give" in said(
        *fit("experiments/own_images.yaml", *more)
    )


def test_channels_alone_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "pictures")
    words = fit(
        "experiments/own_images.yaml", "--data.root", root, "--data.channels", "3", "--data.ways", "3", "--trainer.max_steps", 1
    )
    done = cli.run(
        [str(word) for word in [*words, "--trainer.default_root_dir", tmp_path / "runs", "--test_after_fit", "false"]]
    )
    assert (done.model.method.backbone.in_channels, done.model.method.backbone.out_features) == (3, 3)


def test_a_missing_key(said: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    text = said(*short(tmp_path / "runs", "--wandb", "online"))
    wandb.teardown()  # what W&B read of the environment would hold for every later run of this process
    assert "W&B has no valid API key" in text and "`wandb login`" in text and "--wandb offline" in text
    assert not (tmp_path / "runs").exists()


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words in (short(tmp_path, "--threads", "0", "--debug"), ["export", str(tmp_path / "run"), "--debug"]):
        monkeypatch.setattr(sys, "argv", ["mamllit", *words])
        with pytest.raises((ValueError, FileNotFoundError), match=r"threads is 0|is not the directory of a complete run"):
            cli.main()


def test_a_fault_of_the_program_is_shown_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise KeyError("momentum")

    monkeypatch.setattr(cli.program, "agree", broken)
    monkeypatch.setattr(sys, "argv", ["mamllit", *short(tmp_path)])
    with pytest.raises(KeyError, match="momentum"):
        cli.main()


def test_an_error_in_the_middle_of_a_training_leaves_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ValueError("in the middle")

    monkeypatch.setattr("mamllit.systems.MetaLearner.on_validation_epoch_start", broken)
    with pytest.raises(ValueError, match="in the middle"):
        cli.run(short(tmp_path, "--trainer.val_check_interval", "1"))
    written = (tmp_path / "seed_0" / "traceback.txt").read_text()
    assert written.startswith("Traceback") and written.endswith("ValueError: in the middle\n")
    assert json.loads((tmp_path / "seed_0" / "result.json").read_text())["steps_done"] == 1


def test_a_word_that_cannot_be_parsed_comes_without_the_list_of_all_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, text in (
        (["fit", "-c", str(tmp_path / "nothing.yaml")], "File does not exist: "),
        (short(tmp_path, "--trainer.no_such", "3"), "no_such"),
        (["fitt"], "fitt"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.run(words)
        printed = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert len(printed) == 2 and printed[1].startswith("error: ") and text in printed[1], printed


def test_reasons_within_reasons_and_lists_become_one_line() -> None:
    head = "Does not validate against any of the Union subtypes\nSubtypes: [A, B]\nErrors:\n"
    inner = f"{head}  - ways is 1; at least 2\n  - Expected a B\nGiven value type: C"
    outer = f"{head}  - {inner}".replace("\n", "\n    ") + "\n  - Expected a <class 'NoneType'>\nGiven value: d"
    assert one_line(ValueError(inner)) == one_line(ValueError(outer)) == "ways is 1; at least 2"
    listed = "not in a; looked for:\n  - b\n  - c\nName it."
    assert one_line(ValueError(listed)) == "not in a; looked for: b, c. Name it."
    assert one_line(FileNotFoundError(2, "No such file or directory", "x")) == "[Errno 2] No such file or directory: 'x'"
    assert one_line(ValueError()) == "ValueError"
