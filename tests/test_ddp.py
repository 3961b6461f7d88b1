"""Two processes (gloo, on the CPU) do what one does: same meta-gradient, same episodes, same test metrics."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from one_update import LR, cell

from mamllit import cli
from mamllit.data import SineDataModule

REPOSITORY = Path(__file__).parents[1]
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2")
CELLS = ("images", "sine")
SCRIPT = """
import json, os, sys
from mamllit import cli

runs, out = json.load(open(sys.argv[1])), sys.argv[2]
rank = os.environ.get("LOCAL_RANK", "0")
errors = {}
for name, arguments in runs.items():
    try:
        done = cli.run(arguments)
        assert done.trainer.world_size == 2
        errors[name] = done.trainer.default_root_dir
    except ValueError as error:
        errors[name] = str(error)
json.dump(errors, open(os.path.join(out, f"rank{rank}.json"), "w"))
"""

pytestmark = [
    pytest.mark.slow,  # starts processes
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Each cell in one process (`one`) and in two (`two`): run directories by cell. `ranks`: what each rank reports."""
    out = tmp_path_factory.mktemp("ddp")
    arguments: dict[str, list[str]] = {}
    for name in CELLS:
        (out / f"{name}.yaml").write_text(yaml.safe_dump(cell(name)))
        arguments[name] = ["fit", "-c", str(out / f"{name}.yaml"), "--trainer.default_root_dir"]
    two = {name: [*start, str(out / "two" / name), *TWO] for name, start in arguments.items()}
    two["indivisible"] = [*two["sine"], "--data.meta_batch_size", "5"]
    (out / "runs.json").write_text(json.dumps(two))
    (out / "script.py").write_text(SCRIPT)
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(REPOSITORY / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, str(out / "script.py"), str(out / "runs.json"), str(out)],
        env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mamllit"])
            patch.syspath_prepend(REPOSITORY / "tests" / "helpers")
            for name, start in arguments.items():
                cli.run([*start, str(out / "one" / name)])
        printed = process.communicate(timeout=240)[0]
    finally:
        if process.poll() is None:  # a rank that waits for the other
            os.killpg(process.pid, signal.SIGKILL)
        torch.set_num_threads(threads)
    assert process.returncode == 0, printed
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return SimpleNamespace(
        one={name: out / "one" / name / "seed_0" for name in CELLS},
        two={name: out / "two" / name / "seed_0" for name in CELLS},
        ranks=ranks,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_of_two_processes_is_that_of_one(runs: SimpleNamespace, name: str) -> None:
    one, two = weights(runs.one[name]), weights(runs.two[name])
    assert list(one) == list(two)
    for key, value in one.items():  # the step is LR times the gradient, of which 1e-5 is granted to rounding
        torch.testing.assert_close(two[key], value, rtol=0, atol=LR * 1e-5)
    (train,) = [row for row in rows(runs.one[name] / "csv/version_0/metrics.csv") if row["train/meta_loss"]]
    assert train["step"] == "0"


@pytest.mark.parametrize("name", CELLS)
def test_both_evaluate_the_same_episodes(runs: SimpleNamespace, name: str) -> None:
    one, two = (rows(run[name] / "episodes.csv") for run in (runs.one, runs.two))
    metric = "mse" if name == "sine" else "accuracy"
    keys = [(row["set"], row["batch_norm"], row["episode"], row["steps"]) for row in one]
    assert keys == [(row["set"], row["batch_norm"], row["episode"], row["steps"]) for row in two]
    assert len({row["episode"] for row in two}) == (7 if name == "sine" else 5)  # an odd number: unequal shares
    for mine, other in zip(one, two, strict=True):
        assert float(other[metric]) == pytest.approx(float(mine[metric]), rel=1e-5 if name == "sine" else 0)
    assert len({row[metric] for row in one}) > 2


def results(run: Path) -> dict[str, dict[str, Any]]:
    return json.loads((run / "result.json").read_text())["results"]


def test_the_accuracies_are_equal_to_the_last_digit(runs: SimpleNamespace) -> None:
    one, two = results(runs.one["images"]), results(runs.two["images"])
    assert set(one) == {"val", "standard[5]"}
    assert one == two


def test_the_errors_are_equal_to_six_digits(runs: SimpleNamespace) -> None:
    one, two = results(runs.one["sine"]), results(runs.two["sine"])
    assert set(one) == set(two) == {"val", "paper[7]"}
    for name in one:
        assert one[name]["episodes"] == two[name]["episodes"]
        for field in ("mean", "ci95", "median", "diverged"):
            assert two[name][field] == pytest.approx(one[name][field], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_both_ranks_write_into_one_directory(runs: SimpleNamespace, name: str) -> None:
    assert [rank[name] for rank in runs.ranks] == [str(runs.two[name])] * 2
    assert [path.name for path in runs.two[name].parent.iterdir()] == ["seed_0"]
    files = [{str(path.relative_to(run[name])) for path in run[name].rglob("*")} for run in (runs.one, runs.two)]
    assert files[0] == files[1]


def test_a_meta_batch_that_the_ranks_do_not_divide_is_refused_on_each_of_them(runs: SimpleNamespace) -> None:
    for rank in runs.ranks:
        assert rank["indivisible"].startswith("meta_batch_size is 5, counted over all ranks, and cannot be")
        assert "equally over 2 ranks" in rank["indivisible"]


# ---- without processes -----------------------------------------------------------------------------------------------


def module(rank: int, world: int, step: int = 0) -> SineDataModule:
    data = SineDataModule(meta_batch_size=6, seed=0, test_shots=(5,), protocols=("paper",), test_episodes=7, eval_batch_size=2)
    progress = SimpleNamespace(total=SimpleNamespace(processed=step))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, fit_loop=loop, overfit_batches=0.0)  # type: ignore[assignment]
    return data


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_shares_are_the_single_process_meta_batch(world: int) -> None:
    whole = [batch for batch, _ in zip(iter(module(0, 1).train_dataloader()), range(3), strict=False)]
    shares = [
        [batch for batch, _ in zip(iter(module(rank, world).train_dataloader()), range(3), strict=False)]
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        for field in ("number", "amplitude", "phase", "x"):
            together = torch.cat([getattr(share[step], field) for share in shares])
            assert torch.equal(together, getattr(batch, field)), f"{field} at step {step}"


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_ranks_evaluate_each_episode_once(world: int) -> None:
    numbers = []
    for rank in range(world):
        (loader,) = module(rank, world).test_dataloader()
        numbers += [number for batch in loader for number in batch.number.tolist()]
    assert numbers == list(range(7))


def test_fewer_evaluation_episodes_than_ranks_are_refused() -> None:
    message = r"^the evaluation set 'paper\[7\]' has 7 episodes for 8 ranks; each rank needs one"
    with pytest.raises(ValueError, match=message):
        module(0, 8).test_dataloader()


def test_an_indivisible_meta_batch_is_refused_with_both_numbers() -> None:
    message = r"^meta_batch_size is 6, .* cannot be split equally over 4 ranks; use a number of ranks that divides it"
    with pytest.raises(ValueError, match=message):
        module(0, 4).setup("fit")
    module(0, 3).setup("fit")
