"""From a run directory to a file, and the table of the files."""

import json
from pathlib import Path

import pytest
import torch
from toy_runs import toy_config, toy_method, toy_result, toy_run

from mamllit.pretrained import export as module
from mamllit.pretrained import files, load, read
from mamllit.pretrained.export import cell_name, export, table


def test_export_keeps_weights_configuration_and_result(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run")
    path = export(run)
    assert path == run / "maml_toy_3way.safetensors"
    checkpoint, tensors = read(path)
    original = toy_method().state_dict()
    assert set(tensors) == set(original)
    assert all(torch.equal(tensors[name], original[name]) for name in original)
    assert checkpoint.name == "maml_toy_3way"
    assert checkpoint.model == toy_config()["model"]
    assert checkpoint.steps == 3
    result = checkpoint.result
    assert {key: result[key] for key in ("steps_done", "steps_asked", "seed", "commit", "checkpoint", "transductive")} == {
        "steps_done": 30,
        "steps_asked": 40,
        "seed": 5,
        "commit": "0123456789abcdef",
        "checkpoint": "last",
        "transductive": True,
    }
    assert set(result["results"]) == {"paper"}  # what is measured on meta-val selects, and is no result
    assert result["results"]["paper"]["mean"] == [0.3, 0.812346, 0.9, 0.95]
    assert result["results"]["paper"]["episodes"] == 600
    assert result["published"] == {"paper": {"3": 0.987}}


def test_no_path_of_the_machine_is_kept(tmp_path: Path) -> None:
    path = export(toy_run(tmp_path / "run"))
    content = path.read_bytes()
    assert b"secret" not in content
    assert str(tmp_path).encode() not in content
    assert read(path)[0].data["init_args"] == {"image_size": 16, "channels": 1, "ways": 3}


def test_the_best_checkpoint_needs_its_own_result(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match=r"^result\.json describes the weights after 30 steps, but best\.ckpt holds those after 20: run `mamllit test "
        r"-c CONFIG --ckpt_path best` first",
    ):
        export(run, ckpt="best")
    assert not list(run.glob("*.safetensors"))
    path = export(run, ckpt="best", result=toy_result(steps=20), out=tmp_path / "other.safetensors")
    checkpoint, tensors = read(path)
    assert (checkpoint.name, checkpoint.result["checkpoint"], checkpoint.result["steps_done"]) == ("other", "best", 20)
    weight = toy_method().state_dict()["backbone.head.weight"]
    assert torch.equal(tensors["backbone.head.weight"], weight * 0.5)


def test_what_was_measured_at_another_step_is_left_out(tmp_path: Path) -> None:
    """A fit of 22 steps with its test, continued to 60 without one."""
    result = toy_result(steps=60)
    result["results"]["paper"]["step"] = 22
    result["results"]["old"] = {key: value for key, value in result["results"]["paper"].items() if key != "step"}
    run = toy_run(tmp_path / "run", result=result, steps=60)
    with pytest.warns(
        UserWarning, match=r"^left out, since the checkpoint is from step 60: paper \(step 22\), old \(step unknown\); to"
    ):
        path = export(run)
    assert read(path)[0].result["results"] == {}
    assert read(path)[0].result["steps_done"] == 60


def test_export_without_a_test_is_possible(tmp_path: Path) -> None:
    result = toy_result()
    del result["results"], result["commit"]
    path = export(toy_run(tmp_path / "run", result=result))
    assert read(path)[0].result["results"] == {}
    assert read(path)[0].result["commit"] is None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (toy_run(tmp_path / "run") / "result.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"run is not the directory of a complete run of `mamllit fit`; missing: \S+result\.json$"
    ):
        export(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"missing: \S+config\.yaml, \S+result\.json, \S+last\.ckpt$"):
        export(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ckpt": "step20"}, "^ckpt is 'step20'; it must be 'last' or 'best'"),
        ({"dtype": "bfloat16"}, "^dtype is 'bfloat16'; it must be 'float32' or 'float16'"),
        ({"out": "x.pt"}, r"^the file is x\.pt; its name must end in \.safetensors"),
        ({"limit": 1000}, r"^maml_toy_3way\.safetensors would have [\d,]+ bytes, more than the limit of 1,000"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(toy_run(tmp_path / "run"), **arguments)


def test_what_cannot_be_rebuilt_is_not_written(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run", method=toy_method(out_features=4))
    with pytest.raises(ValueError, match=r"^the checkpoint maml_toy_3way does not fit the model: backbone\.head\.weight is"):
        export(run)
    assert not list(run.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("runs/maml/omniglot_5way_1shot", "maml_omniglot_5way_1shot"),
        ("/home/me/runs/own_images", "own_images"),
        ("/data/experiment", "experiment"),
        ("runs", "runs"),
        (None, "run"),
    ],
)
def test_the_name_follows_the_experiment(root: str | None, name: str) -> None:
    assert cell_name({"trainer": {"default_root_dir": root}}) == name


def test_the_table_is_written_beside_the_package_s_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    for place in (files, module):
        monkeypatch.setattr(place, "FOLDER", folder)
    run = toy_run(tmp_path / "run")
    export(run)
    assert not (run / "README.md").exists()
    path = export(run, out=folder / "maml_toy.safetensors")
    export(run, dtype="float16", out=folder / "toy_half.safetensors")
    written = (folder / "README.md").read_text()
    assert written == table()
    size = f"{path.stat().st_size / 1000:.0f}"
    row = "| `maml_toy` | 30 / 40 | 3 | paper: 95.00% ± 0.40% (600 x 1) | paper: 98.70% | 5, last "
    row += f"| float32, {size} kB | 0123456 |"
    assert row in written.splitlines()
    assert "| float16, " in written
    assert load("maml_toy").backbone.out_features == 3


def test_the_table_shows_what_was_not_measured_and_errors_of_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (files, module):
        monkeypatch.setattr(place, "FOLDER", tmp_path / "checkpoints")
    run = toy_run(tmp_path / "run", config=toy_config(results={"published": None}), result=toy_result(results={}))
    export(run, out=tmp_path / "checkpoints" / "a.safetensors")
    (run / "result.json").write_text(json.dumps(toy_result(metric="mse", commit=None)))
    export(run, out=tmp_path / "checkpoints" / "b.safetensors")
    rows = table().splitlines()[-2:]
    assert rows[0].startswith("| `a` | 30 / 40 | 3 | not measured |  | 5, last |")
    assert "| paper: 0.95 ± 0.004 (600 x 1) |" in rows[1]
    assert rows[1].endswith("| unknown |")


def test_the_package_s_table_is_up_to_date() -> None:
    written = files.FOLDER / "README.md"
    assert (written.read_text() if written.exists() else "") == (table() if files.names() else "")
    for name in files.names():
        assert files.find(name).stat().st_size <= files.LIMIT
        checkpoint, _ = read(name)
        assert checkpoint.name == name
        load(name)


def test_the_checkpoints_that_come_with_mamllit_name_no_folder_of_a_machine() -> None:
    for name in files.names():
        assert "stopped" not in (files.read(name)[0].result["fit"] or {})
