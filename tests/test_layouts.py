"""The same run on several nodes: whatever the layout of the processes, the curve and the result are those of one process.

The nodes are torchrun agents on this machine, with gloo. Four processes add their gradients in the same order on however many
nodes, so that their runs are equal to the bit. Against one process the order is another. The meta-gradient jumps where a ReLU
crosses zero, and with hundreds of thousands of them a float32 rounding error makes one cross every few steps
(docs/clusters.md): in float32 only the loss at the same weights is compared, the fifty steps in double precision.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from one_update import cell

REPOSITORY = Path(__file__).parents[1]
OMNIGLOT = REPOSITORY / "experiments" / "maml" / "omniglot_5way_1shot.yaml"


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def run(arguments: list[str], nodes: int, processes: int, timeout: float = 600) -> str:
    """`mamllit fit` on `nodes` x `processes` under torchrun; one process without. Returns what was printed.

    Raises:
        AssertionError: with what was printed, where a node fails.
    """
    command = [sys.executable, "-m", "mamllit.cli", "fit", *arguments, "--trainer.accelerator", "cpu"]
    commands = [command]
    if nodes * processes > 1:
        layout = ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
        rendezvous = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(processes)]
        commands = [
            [*torchrun, *rendezvous, "--node-rank", str(node), *command[1:], *layout] for node in range(nodes)
        ]  # fmt: skip
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    started = [
        subprocess.Popen(
            words, env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for words in commands
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:  # a node that waits for another
                os.killpg(process.pid, signal.SIGKILL)
    assert all(process.returncode == 0 for process in started), "\n".join(printed)
    return "\n".join(printed)


def curve(folder: Path) -> list[float]:
    """The logged training losses."""
    with (folder / "csv/version_0/metrics.csv").open() as file:
        return [float(row["train/meta_loss"]) for row in csv.DictReader(file) if row["train/meta_loss"]]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["results"]


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy run of 4 meta-updates in one process, and on 2 nodes with 2 processes each."""
    out = tmp_path_factory.mktemp("layouts")
    config = cell("images")
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2}
    (out / "cell.yaml").write_text(yaml.safe_dump(config))
    folders = {}
    for nodes, processes in ((1, 1), (2, 2)):
        root = out / f"{nodes}x{processes}"
        run(["-c", str(out / "cell.yaml"), "--trainer.default_root_dir", str(root)], nodes, processes, 240)
        assert [path.name for path in root.iterdir()] == ["seed_0"]  # all ranks take one directory
        folders[root.name] = root / "seed_0"
    return folders


@pytest.mark.slow
def test_two_nodes_with_two_processes_each_learn_the_curve_of_one(two_by_two: dict[str, Path]) -> None:
    one, four = (curve(folder) for folder in two_by_two.values())
    assert len(one) == 4
    assert four == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_nodes_with_two_processes_each_give_the_result_of_one(two_by_two: dict[str, Path]) -> None:
    one, four = (results(folder) for folder in two_by_two.values())
    assert set(one) == {"val", "standard[5]"}
    assert one == four


@pytest.mark.slow
def test_four_ranks_refuse_a_meta_batch_that_they_do_not_divide(two_by_two: dict[str, Path], tmp_path: Path) -> None:
    config = two_by_two["1x1"].parents[1] / "cell.yaml"
    words = ["-c", str(config), "--trainer.default_root_dir", str(tmp_path), "--data.meta_batch_size", "6"]
    with pytest.raises(AssertionError, match=r"meta_batch_size is 6, .* cannot be split equally over 4 ranks; use a number"):
        run(words, 1, 4, 240)


# ---- Omniglot --------------------------------------------------------------------------------------------------------


def omniglot(root: Path, nodes: int, processes: int, *more: str) -> Path:
    """50 meta-updates on real images; the run's folder."""
    if not (images := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    words = [
        "-c", str(OMNIGLOT), "--data.root", images, "--trainer.max_steps", "50", "--trainer.val_check_interval", "50",
        "--data.meta_batch_size", "8", "--data.val_episodes", "8", "--data.test_episodes", "40", "--model.log_every", "1",
        "--model.eval_steps", "3", "--data.protocols", "[paper]", "--wandb", "disabled", "--threads", "1",
    ]  # fmt: skip
    folder = root / f"{nodes}x{processes}"
    run([*words, *more, "--trainer.default_root_dir", str(folder)], nodes, processes, 1800)
    return folder / "seed_0"


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


@pytest.mark.long
@pytest.mark.real_data
def test_four_processes_are_the_same_run_whatever_their_nodes(tmp_path: Path) -> None:
    """1 x 4, 2 x 2 and 4 x 1, in float32: every loss and every accuracy to the last bit."""
    folders = [omniglot(tmp_path, nodes, 4 // nodes) for nodes in (1, 2, 4)]
    curves = [curve(folder) for folder in folders]
    assert [len(losses) for losses in curves] == [50, 50, 50]
    assert curves[0] == curves[1] == curves[2]
    found = [results(folder) for folder in folders]
    assert set(found[0]) == {"val", "paper[40]", "paper[40]/inductive"}
    assert found[0] == found[1] == found[2]
    one = curve(omniglot(tmp_path, 1, 1))
    print(f"against one process, in float32: {largest_difference(curves[0][:1], one[:1]):.1e} at the same weights")
    assert curves[0][0] == pytest.approx(one[0], rel=1e-6)


@pytest.mark.long
@pytest.mark.real_data
def test_four_processes_are_one_process_but_for_rounding(tmp_path: Path) -> None:
    """In double precision, where rounding has no time to grow: the curve to 1e-10, every accuracy to the last digit."""
    double = ["--data", "double_omniglot.DoubleOmniglot", "--trainer.precision", "64-true"]
    one, four = (omniglot(tmp_path, *layout, *double) for layout in ((1, 1), (2, 2)))
    assert len(curve(one)) == 50
    largest = largest_difference(curve(four), curve(one))
    print(f"largest relative difference of the loss in double precision: {largest:.1e}")
    assert largest < 1e-10
    assert results(four) == results(one)
    assert len(set(results(one)["paper[40]"]["mean"])) == 4  # it is trained: the accuracy rises with the steps
