"""Every YAML below experiments/ parses against the real signatures, and says where it comes from and how to run it."""

import inspect
import pkgutil
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from mamllit.cli import MamllitCLI
from mamllit.cli.agreement import agree
from mamllit.cli.program import read

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
OVERLAYS = sorted((EXPERIMENTS / "hardware").rglob("*.yaml"))
SWEEPS = sorted((EXPERIMENTS / "sweeps").rglob("*.yaml"))  # of W&B, see tests/experiments/test_sweeps.py
CELLS = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if path not in OVERLAYS + SWEEPS]
NEEDS = {
    "learn2learn": "class_path: mamllit.bridges.learn2learn",
    "mujoco": "world: mamllit.rl.worlds.locomotion",
    "timm": "class_path: mamllit.backbones.Timm",
}
LACKING = [text for package, text in NEEDS.items() if find_spec(package) is None]
MEASURED = [path for path in CELLS if not any(text in path.read_text() for text in LACKING)]

pytestmark = pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*")  # Lightning's use of jsonargparse


@cache
def reader() -> MamllitCLI:
    """The command line, whose parser reads all files: to make one takes half as long as to read a file."""
    return read(CELLS[0])


@cache
def document(path: Path) -> dict[str, Any]:
    """An experiment as it is written, read once for all rules."""
    return yaml.safe_load(path.read_text())


@cache
def parsed(path: Path) -> SimpleNamespace:
    """An experiment, read once for all rules: its `config`, and the `model` and `data` that it stands for."""
    config = reader().parser.parse_path(str(path))
    agree(config.model, config.data)  # sizes that a file leaves to the data
    made = reader().parser.instantiate_classes(config)
    return SimpleNamespace(config=config, model=made.model, data=made.data)


def name(path: Path) -> str:
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


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


def test_headers_name_paper_command_and_departures() -> None:
    wrong = []
    for path in CELLS:
        text, recipe = header(path), path.parent.name == "recipes"
        lines = [r"# \S.*", r"# (Paper|Reaches for): \S.*\b(19|20)\d\d\b.*", r"# Departures\b.*: ?.*"]
        lines += [r"# Recipe, not the paper's row: \S.*"] if recipe else [r"# Paper: \S.*", r"# Departures: \S.*"]
        wrong += [f"{name(path)}: no line {line!r}" for line in lines if not re.search(rf"^{line}$", text, re.M)]
        commands = re.findall(r"^# Command: mamllit fit -c (\S+)", text, re.M)
        wrong += [f"{name(path)}: {commands}"] if commands != [str(path.relative_to(REPOSITORY))] else []
    assert not wrong, wrong


def test_files_parse_and_their_objects_can_be_made() -> None:
    for path in MEASURED:
        model, data = parsed(path).model, parsed(path).data
        model.check_ways(data)  # as many outputs as ways
        backbone = model.method.backbone
        no_network = isinstance(backbone, torch.nn.Identity)  # pixels
        assert no_network or sum(value.numel() for value in backbone.parameters()) > 0, name(path)


def test_the_system_is_named() -> None:
    assert not [name(path) for path in CELLS if set(document(path)["model"]) != {"class_path", "init_args"}]


def test_run_directories_and_groups_mirror_the_path() -> None:
    wrong = []
    for path in CELLS:
        trainer = document(path)["trainer"]
        group = next(entry for entry in trainer["logger"] if entry["class_path"].endswith("WandbLogger"))["init_args"]["group"]
        if (trainer["default_root_dir"], group) != (f"runs/{name(path)}", name(path)):
            wrong.append(f"{name(path)}: {trainer['default_root_dir']}, {group}")
    assert not wrong, wrong


def test_what_the_numbers_hang_on_is_written_down() -> None:
    wrong = {}
    for path in CELLS:
        written = document(path)
        if path not in MEASURED:
            continue
        settings = written["model"]["init_args"]
        method = settings.get("method", written["model"])  # a pre-training has none
        data = written["data"]["init_args"]
        taken = inspect.signature(pkgutil.resolve_name(method["class_path"])).parameters
        missing = {"reduction", "inner_lr", "inner_steps", "first_order"} & set(taken) - set(method["init_args"])
        needed = {"shots", "plain"} if "plain" in data else {"shots", "queries", "meta_batch_size"}
        needed = {"length", "order", "meta_batch_size"} if "length" in data else needed  # streams
        missing |= {"seed_everything"} - set(written) | needed - set(data)
        if missing:
            wrong[name(path)] = missing
    assert not wrong, wrong


def test_the_best_checkpoint_is_best_by_the_reported_metric() -> None:
    wrong = []
    for path in MEASURED:
        objective, best = parsed(path).model.method.objective, parsed(path).config.checkpoint_best
        if (best.monitor, best.mode) != (f"val/{objective.metric_name}", "max" if objective.higher_is_better else "min"):
            wrong.append(f"{name(path)}: {best.monitor}, {best.mode}")
    assert not wrong, wrong


def test_published_values_stand_beside_sets_that_are_measured() -> None:
    wrong = []
    for path in MEASURED:
        read_once = parsed(path)
        sets = {evaluation.name for evaluation in read_once.data.evaluation_sets("test")}
        sets |= {f"{name}/{reading}" for name in sets for reading in ("inductive", "population")}
        published = read_once.config.results.published or {}
        steps = {steps for values in published.values() for steps in values}
        if not set(published) <= sets or not steps <= set(range(read_once.model.eval_steps + 1)):
            wrong.append(f"{name(path)}: {sorted(published)} after {sorted(steps)} steps, of {sorted(sets)}")
    assert not wrong, wrong


def test_runs_end_with_a_validation_and_a_checkpoint() -> None:
    wrong = []
    for path in CELLS:
        written = document(path)
        steps = written["trainer"]["max_steps"]
        every = (written["trainer"]["val_check_interval"], written["checkpoint_last"]["every_n_train_steps"])
        wrong += [f"{name(path)}: {steps}, {every}"] if any(steps % interval for interval in every) else []
    assert not wrong, wrong


def test_there_is_an_overlay_for_each_kind_of_hardware() -> None:
    assert {path.stem for path in OVERLAYS} == {"cpu", "one_gpu", "ddp", "multi_node", "bf16"}


def test_overlays_touch_neither_model_nor_data() -> None:
    alone = reader().config.as_dict()
    for path in OVERLAYS:
        overlay, over = document(path), read(CELLS[0], path).config.as_dict()
        assert set(overlay) == {"trainer"}, name(path)
        assert over["trainer"] == alone["trainer"] | overlay["trainer"], name(path)
        assert (over["model"], over["data"]) == (alone["model"], alone["data"]), name(path)


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
        reader().parser.parse_path(str(wrong))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.split("error:", 1)[1]
    assert re.search(rf"\b{named}\b", error)
