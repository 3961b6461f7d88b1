"""The cells of the tables are the YAML files, and missing data are named with the command that gets them."""

import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "experiments"))
from reproduction.cells import Cell, find_cells  # noqa: E402

EXPERIMENTS = REPOSITORY / "experiments"
# Finn et al. 2017, table 1 and table 2 of appendix C.1, written down a second time: here to catch a slip in a YAML.
PAPER = {
    "omniglot_5way_1shot": (3, 0.987, 0.004),
    "omniglot_5way_5shot": (3, 0.999, 0.001),
    "omniglot_20way_1shot": (5, 0.958, 0.003),
    "omniglot_20way_5shot": (5, 0.989, 0.002),
    "omniglot_5way_1shot_mlp": (3, 0.897, 0.011),
    "omniglot_5way_5shot_mlp": (3, 0.975, 0.006),
    "mini_imagenet_5way_1shot": (10, 0.487, 0.0184),
    "mini_imagenet_5way_5shot": (10, 0.6311, 0.0092),
    "mini_imagenet_5way_1shot_first_order": (10, 0.4807, 0.0175),
    "mini_imagenet_5way_5shot_first_order": (10, 0.6315, 0.0091),
}


def maml(table: str) -> dict[str, Cell]:
    return {cell.path.stem: cell for cell in find_cells(EXPERIMENTS, table, ["maml/*"])}


def test_every_maml_cell_of_the_papers_table_is_there_with_its_value() -> None:
    cells = maml("omniglot") | maml("mini_imagenet")
    assert set(cells) == set(PAPER)
    for name, (steps, value, ci95) in PAPER.items():
        assert cells[name].published == {"paper": {steps: value}}
        assert cells[name].published_ci95 == {"paper": {steps: ci95}}
        assert cells[name].inner_steps == [steps] == [cells[name].report_step]
        assert cells[name].max_steps == 60000
    sine = maml("sine")["sine_10shot"]
    assert sine.published == {"paper/5-shot": {1: 0.67, 5: 0.38, 10: 0.35}}
    assert sine.inner_steps == [1, 5, 10]


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_are_those_of_the_papers_appendix(name: str) -> None:
    """Appendix A.1: N ways, K shots, alpha, steps, meta-batch, queries in training, clipping on mini-ImageNet alone."""
    document = (maml("omniglot") | maml("mini_imagenet"))[name].document
    method, data, trainer = (
        document["model"]["init_args"]["method"]["init_args"],
        document["data"]["init_args"],
        document["trainer"],
    )
    mini, ways, shots = name.startswith("mini"), 20 if "20way" in name else 5, 5 if "5shot" in name else 1
    got = (data["ways"], data["shots"], data["queries"], data["meta_batch_size"])
    tasks = {(True, 1): 4, (True, 5): 2}.get((mini, shots), 32 if ways == 5 else 16)
    assert got == (ways, shots, 15 if mini else shots, tasks)
    inner = (method["inner_lr"], method["inner_steps"], method["reduction"], method["first_order"])
    lr, steps = (0.01, 5) if mini else (0.4, 1) if ways == 5 else (0.1, 5)
    assert inner == (lr, steps, "sum_over_shots", "first_order" in name)
    clip = (trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm"))
    assert clip == ((10, "value") if mini else (None, None))
    assert document["model"]["init_args"]["eval_steps"] == 10


def test_patterns_choose_cells_with_or_without_the_folder() -> None:
    def names(*patterns: str) -> list[str]:
        return [cell.name for cell in find_cells(EXPERIMENTS, "omniglot", patterns)]

    assert names("maml/omniglot_20way*") == ["maml/omniglot_20way_1shot", "maml/omniglot_20way_5shot"]
    assert names("omniglot_5way_1shot_mlp") == ["maml/omniglot_5way_1shot_mlp"]
    every = {path.parent.name for path in EXPERIMENTS.glob("*/omniglot_20way_5shot.yaml")}
    every.remove("recipes")  # asked for by --recipe
    assert {"maml", "prototypical"} <= every
    found = names("*_1shot_mlp", "*20way_5shot")
    assert len(found) == len(every) + 1
    assert set(found) == {"maml/omniglot_5way_1shot_mlp"} | {f"{method}/omniglot_20way_5shot" for method in every}


def test_all_is_every_table() -> None:
    assert {cell.table for cell in find_cells(EXPERIMENTS, "all", ["maml/*"])} == {
        "omniglot", "mini_imagenet", "sine", "sine_line", "frequency_sine",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["sweeps/omniglot_5way_1shot_inner_loop", "pretrain/mini_imagenet_conv4_32"])
def test_what_has_no_method_is_no_cell(file: str) -> None:
    assert (EXPERIMENTS / f"{file}.yaml").exists()
    assert not [cell for cell in find_cells(EXPERIMENTS, "all") if cell.path.parent.name == file.partition("/")[0]]
    assert all(cell.report_step >= 0 for cell in find_cells(EXPERIMENTS, "all"))


def test_recipes_are_cells_of_their_own_and_know_what_they_begin_with() -> None:
    recipes = {cell.name: cell for cell in find_cells(EXPERIMENTS, "all", recipe=True)}
    features = {"recipes/omniglot_features"}  # what recipes start from, of no table itself
    assert set(recipes) == {f"recipes/{path.stem}" for path in EXPERIMENTS.glob("recipes/*.yaml")} - features
    assert all(cell.start is None for cell in recipes.values())  # from nothing, or from weights that come with mamllit


def test_a_recipe_may_begin_with_the_run_of_an_experiment_and_that_with_another(tmp_path: Path) -> None:
    for name, system, begun in (
        ("pretrain/first", "PreTrainer", None),
        ("pretrain/second", "PreTrainer", "runs/pretrain/first/seed_0"),
        ("recipes/toy_3way", "MetaLearner", "runs/pretrain/second/seed_0"),
    ):
        document = {"init_from": begun, "model": {"class_path": f"mamllit.systems.{system}"}}
        document["trainer"] = {"default_root_dir": f"runs/{name}", "max_steps": 7}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    (recipe,) = find_cells(tmp_path, "toy", recipe=True)
    assert recipe.start is not None
    assert (recipe.start.name, recipe.start.max_steps) == ("pretrain/second", 7)
    assert recipe.start.start is not None
    assert recipe.start.start.name == "pretrain/first"


def test_a_recipe_that_begins_with_no_experiment_is_refused(tmp_path: Path) -> None:
    document = {"init_from": "runs/nothing/seed_0", "model": {"class_path": "mamllit.systems.MetaLearner"}}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "toy_3way.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ValueError, match=r"init_from is 'runs/nothing/seed_0', and no experiment has its runs in runs/nothing"):
        find_cells(tmp_path, "toy", recipe=True)


def test_the_name_is_that_of_the_checkpoint_that_comes_with_mamllit() -> None:
    assert maml("omniglot")["omniglot_5way_1shot"].key == "maml_omniglot_5way_1shot"


def test_an_unknown_table_or_cell_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"no table is named 'omniglott'; there are: .*mini_imagenet, .*omniglot.*, all"):
        find_cells(EXPERIMENTS, "omniglott")
    with pytest.raises(ValueError, match=r"no cell of the table 'sine' matches 'sine_11shot'; near or all: .*sine_10shot"):
        find_cells(EXPERIMENTS, "sine", ["sine_11shot"])


def omniglot(root: Path) -> Cell:
    document = yaml.safe_load((EXPERIMENTS / "maml/omniglot_5way_1shot.yaml").read_text())
    document["data"]["init_args"]["root"] = str(root)
    return Cell("maml/omniglot_5way_1shot", "omniglot", Path("experiments/maml/omniglot_5way_1shot.yaml"), document)


def test_absent_data_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for cell, root in ((omniglot(tmp_path / "empty"), None), (omniglot(tmp_path), str(tmp_path / "empty"))):
        problem = cell.data_problem(root)
        assert problem is not None
        assert problem.startswith("its data are absent: ")
        command = f"mamllit fit -c experiments/maml/omniglot_5way_1shot.yaml --data.root {tmp_path / 'empty'}"
        assert problem.endswith(f"The command that gets them: {command} --data.download true")


def test_damaged_data_are_named_too(tmp_path: Path) -> None:
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"no zip")
    problem = omniglot(tmp_path).data_problem(None)
    assert problem is not None
    assert problem.startswith("its data cannot be used: ")
    assert "images_background.zip" in problem


def test_generated_data_are_always_there() -> None:
    cell = maml("sine")["sine_10shot"]
    assert cell.data_problem(None) is None
