"""Every YAML below experiments/ parses against the real signatures, and says where it comes from and how to run it."""

import inspect
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mamllit.cli import TRAINER_DEFAULTS, MamllitCLI, names_a_system
from mamllit.data import EpisodicDataModule
from mamllit.systems import EpisodicSystem, MetaLearner

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
OVERLAYS = sorted((EXPERIMENTS / "hardware").rglob("*.yaml"))
SWEEPS = sorted((EXPERIMENTS / "sweeps").rglob("*.yaml"))  # of W&B, see tests/experiments/test_sweeps.py
CELLS = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if path not in OVERLAYS + SWEEPS]
ABSENT = pytest.mark.skipif(find_spec("learn2learn") is None, reason="learn2learn is not installed")
PARAMS = [pytest.param(path, marks=ABSENT if path.parent.name == "learn2learn" else ()) for path in CELLS]
each_cell = pytest.mark.parametrize("path", PARAMS, ids=[str(path.relative_to(EXPERIMENTS)) for path in CELLS])

pytestmark = pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*")  # Lightning's use of jsonargparse


class Parsed(MamllitCLI):
    """The command line as far as the objects: no run directory, no Trainer, nothing is run."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.trainer = None  # type: ignore[assignment]


def parse(*files: Path) -> Parsed:
    arguments = [argument for file in files for argument in ("-c", str(file))]
    return Parsed(
        EpisodicSystem if names_a_system(arguments) else MetaLearner,
        EpisodicDataModule,
        subclass_mode_model=names_a_system(arguments),
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults=TRAINER_DEFAULTS,
        args=arguments,
        run=False,
    )


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mamllit"])  # LightningCLI warns of others


def header(path: Path) -> str:
    """The comment that a file begins with."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_every_file_with_a_command_is_a_cell_and_the_other_way_round() -> None:
    documents = [path for path in EXPERIMENTS.rglob("*") if path.suffix in (".yaml", ".yml")]
    with_command = [path for path in documents if re.search(r"^# Command: mamllit fit ", path.read_text(), re.M)]
    assert len(CELLS) >= 3
    assert sorted(with_command) == CELLS


@each_cell
def test_header_names_paper_command_and_departures(path: Path) -> None:
    text = header(path)
    for line in (r"# \S.*", r"# Paper: \S.*\b(19|20)\d\d\b.*", r"# Departures: \S.*"):
        assert re.search(rf"^{line}$", text, re.M), f"the header lacks a line {line!r}"
    commands = re.findall(r"^# Command: mamllit fit -c (\S+)", text, re.M)
    assert commands == [str(path.relative_to(REPOSITORY))]


@each_cell
def test_file_parses_and_its_objects_can_be_made(path: Path) -> None:
    cli = parse(path)
    backbone = cli.model.method.backbone
    assert sum(value.numel() for value in backbone.parameters()) > 0
    cli.model.check_ways(cli.datamodule)  # as many outputs as ways


@each_cell
def test_run_directory_and_group_mirror_the_path(path: Path) -> None:
    cell = str(path.relative_to(EXPERIMENTS).with_suffix(""))
    document = yaml.safe_load(path.read_text())
    assert document["trainer"]["default_root_dir"] == f"runs/{cell}"
    wandb = next(entry for entry in document["trainer"]["logger"] if entry["class_path"].endswith("WandbLogger"))
    assert wandb["init_args"]["group"] == cell


@each_cell
def test_what_the_numbers_hang_on_is_written_down(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    settings = document["model"].get("method", document["model"])  # of the method, or of another system than `MetaLearner`
    taken = inspect.signature(pkgutil.resolve_name(settings["class_path"])).parameters
    missing = {"reduction", "inner_lr", "inner_steps", "first_order"} & set(taken) - set(settings["init_args"])
    assert not missing
    assert "seed_everything" in document
    data = document["data"]["init_args"]
    assert ({"shots", "plain"} if "plain" in data else {"shots", "queries", "meta_batch_size"}) <= set(data)


@each_cell
def test_the_best_checkpoint_is_best_by_the_reported_metric(path: Path) -> None:
    cli = parse(path)
    objective, best = cli.model.method.objective, cli.config.checkpoint_best
    assert best.monitor == f"val/{objective.metric_name}"
    assert best.mode == ("max" if objective.higher_is_better else "min")


@each_cell
def test_published_values_stand_beside_sets_that_are_measured(path: Path) -> None:
    cli = parse(path)
    names = {evaluation.name for evaluation in cli.datamodule.evaluation_sets("test")}
    published = cli.config_init.results.published
    assert set(published) <= names
    assert all(0 <= steps <= cli.model.eval_steps for values in published.values() for steps in values)


@each_cell
def test_the_run_ends_with_a_validation_and_a_checkpoint(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    steps = document["trainer"]["max_steps"]
    assert steps % document["trainer"]["val_check_interval"] == 0
    assert steps % document["checkpoint_last"]["every_n_train_steps"] == 0


def test_there_is_an_overlay_for_each_kind_of_hardware() -> None:
    assert {path.stem for path in OVERLAYS} == {"cpu", "one_gpu", "ddp", "multi_node", "bf16"}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_touch_neither_model_nor_data(path: Path) -> None:
    overlay = yaml.safe_load(path.read_text())
    assert set(overlay) == {"trainer"}
    alone, over = (parse(*files).config.as_dict() for files in ((CELLS[0],), (CELLS[0], path)))
    assert over["trainer"] == alone["trainer"] | overlay["trainer"]
    assert (over["model"], over["data"]) == (alone["model"], alone["data"])


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("inner_lr:", "inner_rate:", "inner_rate"),
        ("meta_batch_size:", "metabatch_size:", "metabatch_size"),
        ("max_steps:", "maximum_steps:", "maximum_steps"),
        ("hidden:", "hiden:", "hiden"),
        ("report_step:", "report_steps:", "report_steps"),
        ("checkpoint_best:", "checkpoint_first:", "checkpoint_first"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(
    old: str, new: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXPERIMENTS / "maml" / "sine_10shot.yaml").read_text()
    assert text.count(old) == 1
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as stopped:
        parse(wrong)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.split("error:", 1)[1]
    assert re.search(rf"\b{named}\b", error)
