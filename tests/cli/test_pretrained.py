"""The command line and trained checkpoints: evaluated by name, refused where they do not fit, and begun with."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_runs import QUIET, REPOSITORY, command, result, short

from mamllit import cli
from mamllit.pretrained import files
from mamllit.pretrained.export import export, table

pytestmark = QUIET
OFFLINE = ["--wandb", "disabled"]


@pytest.fixture
def exported(fitted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fitted model as a checkpoint that comes with mamllit, named maml_sine; its file."""
    monkeypatch.setattr(files, "FOLDER", tmp_path / "package")
    return export(fitted.run, out=tmp_path / "package" / "maml_sine.safetensors")


@pytest.mark.parametrize("by_name", [True, False])
def test_test_evaluates_a_pretrained_checkpoint(exported: Path, fitted: SimpleNamespace, tmp_path: Path, by_name: bool) -> None:
    cli.run(command("test", tmp_path / "runs", "--ckpt_path", "maml_sine" if by_name else str(exported)))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pretrained_maml_sine"]
    after, before = result(tmp_path / "runs" / "pretrained_maml_sine"), result(fitted.run)
    assert after["results"]["paper[20]"] == before["results"]["paper[20]"]
    assert after["steps_done"] == 22
    assert "fit" not in after


def test_validate_evaluates_a_pretrained_checkpoint(exported: Path, fitted: SimpleNamespace, tmp_path: Path) -> None:
    done = cli.run(command("validate", tmp_path / "runs", "--ckpt_path", "maml_sine"))
    untrained = cli.run(short(tmp_path / "other", "--trainer.max_steps", "10"))
    assert float(done.trainer.callback_metrics["val/mse"]) != float(untrained.trainer.callback_metrics["val/mse"])


@pytest.mark.usefixtures("exported")
def test_an_unknown_pretrained_checkpoint_lists_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint is named 'maml_sines' \(did you mean 'maml_sine'\?\)"):
        cli.run(command("test", tmp_path, "--ckpt_path", "maml_sines"))


@pytest.mark.usefixtures("exported")
def test_a_pretrained_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    other = ["--model.method.init_args.backbone.init_args.hidden", "[40,30]"]
    with pytest.raises(
        ValueError, match=r"maml_sine does not fit the model: .* is \[40, 40\] in the checkpoint and \[30, 40\]"
    ):
        cli.run(command("test", tmp_path, "--ckpt_path", "maml_sine", *other))


@pytest.mark.usefixtures("exported")
def test_a_pretrained_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"maml_sine\.safetensors holds a trained model without the optimiser's state.*--init_from maml_sine"
    ):
        cli.run(short(tmp_path, "--ckpt_path", "maml_sine"))


# ---- a fit that begins with a checkpoint -------------------------------------------------------------------------------


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_fit_begins_with_a_checkpoint_and_says_so(exported: Path, fitted: SimpleNamespace, tmp_path: Path) -> None:
    cli.run(short(tmp_path / "still", "--init_from", "maml_sine", "--model.optimizer.init_args.lr", "0"))
    torch.testing.assert_close(weights(tmp_path / "still" / "seed_0"), weights(fitted.run), rtol=0, atol=0)
    origin = {"name": "maml_sine", "steps_done": 22, "seed": 0}
    assert result(tmp_path / "still" / "seed_0")["fit"]["started_from"] == origin
    cli.run(command("test", tmp_path / "still"))
    again = export(tmp_path / "still" / "seed_0", out=tmp_path / "package" / "maml_sine_longer.safetensors")
    assert files.steps_done(files.read(again)[0].result) == 24
    assert "| 22 + 2 / 2 |" in table()
    cli.run(short(tmp_path / "third", "--init_from", str(again)))
    chain = result(tmp_path / "third" / "seed_0")["fit"]["started_from"]
    assert chain == {"name": "maml_sine_longer", "steps_done": 2, "seed": 0, "started_from": origin}
    assert files.steps_before({"fit": {"started_from": chain}}) == 24


@pytest.mark.slow
def test_a_resumed_fit_keeps_its_own_weights_and_remembers_where_it_began(exported: Path, tmp_path: Path) -> None:
    cli.run(short(tmp_path / "whole", "--init_from", "maml_sine", "--trainer.max_steps", "4"))
    cli.run(short(tmp_path / "parts", "--init_from", "maml_sine"))
    cli.run(short(tmp_path / "parts", "--ckpt_path", "last", "--trainer.max_steps", "4"))
    torch.testing.assert_close(weights(tmp_path / "parts" / "seed_0"), weights(tmp_path / "whole" / "seed_0"), rtol=0, atol=0)
    assert result(tmp_path / "parts" / "seed_0")["fit"]["started_from"]["name"] == "maml_sine"


@pytest.mark.usefixtures("exported")
def test_what_a_fit_cannot_begin_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint is named 'maml_sines' \(did you mean 'maml_sine'\?\)"):
        cli.run(short(tmp_path, "--init_from", "maml_sines"))
    hidden = ["--model.method.init_args.backbone.init_args.hidden", "[40,30]"]
    with pytest.raises(ValueError, match="maml_sine does not fit the model"):
        cli.run(short(tmp_path, "--init_from", "maml_sine", *hidden))
    with pytest.raises(
        ValueError, match=r"init_from is 'maml_sine'; it is for `fit`. To evaluate a checkpoint, use --ckpt_path"
    ):
        cli.run(command("test", tmp_path, "--init_from", "maml_sine"))


@pytest.mark.usefixtures("exported")
def test_a_file_that_says_with_what_training_begins_is_good_for_a_test(tmp_path: Path) -> None:
    (tmp_path / "begins.yaml").write_text("init_from: nowhere")
    tested = command("test", tmp_path / "runs", "--ckpt_path", "maml_sine")
    cli.run([*tested, "-c", str(tmp_path / "begins.yaml")])
    assert result(tmp_path / "runs" / "pretrained_maml_sine")["steps_done"] == 22


IMAGES = {"OmniglotDataModule": "MAMLLIT_OMNIGLOT", "MiniImagenetDataModule": "MAMLLIT_MINI_IMAGENET"}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", [name for name in files.names() if not name.startswith("rl_")])
def test_a_checkpoint_that_comes_with_mamllit_scores_what_its_metadata_say(name: str, tmp_path: Path) -> None:
    """On the paper's 600 episodes, where rounding may move one of 3,000 images, and float16 a few more. mini-ImageNet's take
    minutes: there the mean of the first 60 must lie within its own interval of that of the 600."""
    checkpoint = files.read(name)[0]
    variable = IMAGES[checkpoint.data["class_path"].rpartition(".")[2]]
    if not (images := os.environ.get(variable)):
        pytest.skip(f"{variable} is not set: the folder of the images")
    few = variable == "MAMLLIT_MINI_IMAGENET"
    steps = [] if checkpoint.steps == 0 else ["--model.eval_steps", str(checkpoint.steps)]
    cell = REPOSITORY / "experiments" / f"{name.replace('_', '/', 1)}.yaml"
    more = ["--data.root", images, "--data.protocols", "[paper]", *steps, "--trainer.accelerator", "cpu"]
    more += ["--data.test_episodes", "60"] if few else []
    cli.run(["test", "-c", str(cell), "--ckpt_path", name, *more, "--trainer.default_root_dir", str(tmp_path), *OFFLINE])
    found = {key.replace("[60]", ""): entry for key, entry in result(tmp_path / f"pretrained_{name}")["results"].items()}
    said = {key: entry for key, entry in checkpoint.result["results"].items() if key.startswith("paper")}
    assert {key for key in found if key.startswith("paper")} == set(said)
    for key, entry in said.items():
        bound = found[key]["ci95"][checkpoint.steps] if few else 0.002
        step = slice(checkpoint.steps, None) if few else slice(0, checkpoint.steps + 1)
        assert found[key]["mean"][step] == pytest.approx(entry["mean"][step], abs=bound), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in files.names() if name.startswith("rl_")])
def test_a_policy_that_comes_with_mamllit_scores_what_its_metadata_say(name: str, tmp_path: Path) -> None:
    """On the paper's 40 tasks, whose noise is the same; rounding may lead single trajectories elsewhere."""
    cell = REPOSITORY / "experiments" / f"{name.removesuffix('_unfinished').replace('_', '/', 1)}.yaml"
    where = ["--trainer.default_root_dir", str(tmp_path), "--wandb", "disabled", "--data.protocols", "[paper]"]
    cli.run(["test", "-c", str(cell), "--ckpt_path", name, "--data.test_shots", "[20]", *where])
    (found,) = [entry for entry in result(tmp_path / f"pretrained_{name}")["results"].values() if entry["split"] == "test"]
    results = files.read(name)[0].result["results"]
    said = results.get("paper/20-shot") or results["paper"]
    bounds = (0.5, 0.5) if "navigation" in name else said["ci95"][:2]  # a body moves chaotically
    for value, expected, bound in zip(found["mean"], said["mean"], bounds, strict=False):
        assert value == pytest.approx(expected, abs=bound)
