"""Where the configuration's loggers write, who their W&B run is, and what `--wandb` changes."""

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from mamllit.runs import loggers


@pytest.fixture(autouse=True)
def no_data_directory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "elsewhere")  # of_run sets one where there is none


def logger(kind: str, **arguments: Any) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**arguments))


def config(choice: Any, wandb: str | None = "offline") -> Namespace:
    method = Namespace(class_path="mamllit.methods.MAML", init_args=Namespace(first_order=False))
    model = Namespace(class_path="mamllit.systems.MetaLearner", init_args=Namespace(method=method))
    data = Namespace(class_path="mamllit.data.OmniglotDataModule", init_args=Namespace(ways=5, shots=1))
    return Namespace(trainer=Namespace(logger=choice), wandb=wandb, model=model, data=data)


def test_loggers_write_into_the_run_directory_and_wandb_is_named_after_it(tmp_path: Path) -> None:
    run = tmp_path / "maml" / "cell" / "seed_0"
    choice = [
        logger("CSVLogger", save_dir="."),
        logger("CSVLogger", save_dir="logs"),
        logger("WandbLogger", save_dir=".", group="maml/cell"),
    ]
    here, elsewhere, wandb = loggers.of_run(config(choice), run, 0)
    assert here.init_args.save_dir == wandb.init_args.save_dir == str(run)
    assert elsewhere.init_args.save_dir == "logs"
    assert (wandb.init_args.name, wandb.init_args.job_type) == ("maml/cell/seed_0", "maml")
    assert wandb.init_args.id == (run / "wandb_run_id").read_text()
    assert wandb.init_args.tags == ["MAML", "Omniglot", "5-way", "1-shot", "seed 0"]
    assert loggers.wandb_entries(choice) == [wandb]


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(("mode", "offline"), [("offline", [True]), ("online", [False]), ("disabled", [])])
def test_the_wandb_mode_holds_for_a_list_and_for_a_single_logger(
    many: bool, mode: str, offline: list[bool], tmp_path: Path
) -> None:
    entry = logger("WandbLogger", save_dir=".", offline=None)
    kept = loggers.of_run(config([entry] if many else entry, mode), tmp_path, 0)
    assert [entry.init_args.offline for entry in kept] == offline


@pytest.mark.parametrize("choice", [None, True, False])
def test_lightnings_own_choice_of_logger_is_left_to_it(choice: bool | None) -> None:
    assert loggers.of_run(config(choice), Path("runs"), 0) is choice


@pytest.mark.parametrize(
    ("asked", "variables", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "disabled"),
        (None, {"WANDB_DISABLED": "false"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
    ],
)
def test_wandb_s_own_variables_decide_where_nothing_is_asked(
    asked: str | None, variables: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kept = loggers.of_run(config([logger("WandbLogger", save_dir=".")], asked), tmp_path / "a" / "b" / "c", 0)
    assert [entry.init_args.offline for entry in kept] == ([] if mode == "disabled" else [mode == "offline"])


def test_an_unknown_wandb_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    with pytest.raises(
        ValueError, match=r"WANDB_MODE is 'sometimes'; it must be one of \['disabled', 'dryrun', .*--wandb offline"
    ):
        loggers.wandb_mode(None)
