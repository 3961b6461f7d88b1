"""MANN, memory module, neural statistician and meta-learner LSTM: killed with no warning and resumed, and on two processes.

The configurations are those of experiments/ with small networks and random images.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from mamllit import cli

REPOSITORY = Path(__file__).parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"
MLP = "mamllit.backbones.MLP"
STREAMS: dict[str, Any] = {"class_path": "toy_streams.ToyStreams"}
SETS: dict[str, Any] = {"class_path": "toy_images.ToyImages", "init_args": {"shots": 1, "queries": 2, "meta_batch_size": 4}}
# cell -> what is smaller in its method, and the data
CELLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mann/omniglot_5way": ({"features": 64, "ways": 3, "hidden": 8, "slots": 8, "width": 4, "heads": 2}, STREAMS),
    "memory_module/omniglot_5way": (
        {
            "backbone": {"class_path": MLP, "init_args": {"in_features": 64, "hidden": [6], "out_features": 5}},
            "features": 5,
        },
        {**STREAMS, "init_args": {"presentations": True}},
    ),
    "neural_statistician/omniglot_5way_1shot": (
        {
            "backbone": {"class_path": MLP, "init_args": {"in_features": 64, "hidden": [6], "out_features": 5}},
            "decoder": {"class_path": MLP, "init_args": {"in_features": 5, "hidden": [6], "out_features": 64}},
            "features": 5, "code": 2, "context": 3, "hidden": 6,
        },
        SETS,
    ),
    "meta_learner_lstm/mini_imagenet_5way_1shot": (
        {
            "backbone": {"class_path": MLP, "init_args": {"in_features": 64, "hidden": [6], "out_features": 3, "norm": True}},
            "inner_steps": 2, "hidden": 4,
        },
        SETS,
    ),
}  # fmt: skip
MEMORY = "memory_module/omniglot_5way"
LR = 0.01
# A process that forks one for each run, so that all are there after one import; its exit status: whether all were killed.
LAUNCHER = """
import json, os, signal, sys, traceback
from mamllit import cli

runs, children = json.load(open(sys.argv[1])), []
for root, arguments in runs.items():
    if (child := os.fork()) == 0:
        sys.argv = ["mamllit"]
        try:
            cli.run(arguments)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    children.append(child)
    with open(root + ".pid", "w") as file:
        print(child, file=file)
sys.exit(any([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL for child in children]))
"""
TWO = """
import json, os, sys
from mamllit import cli

told = {}
for name, arguments in json.load(open(sys.argv[1])).items():
    try:
        assert cli.run(arguments).trainer.world_size == 2
    except ValueError as error:
        told[name] = str(error)
json.dump(told, open(sys.argv[2] + os.environ.get("LOCAL_RANK", "0"), "w"))
"""

pytestmark = [
    pytest.mark.slow,  # starts processes
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
]


def small(name: str, folder: Path) -> Path:
    """The configuration of a cell with its small method and data, as a file; a step takes milliseconds."""
    config = yaml.safe_load((REPOSITORY / "experiments" / f"{name}.yaml").read_text())
    method, config["data"] = CELLS[name]
    model = config["model"]["init_args"]
    model["method"]["init_args"] |= method
    model |= {"eval_steps": 2, "report_step": 0, "log_every": 1}
    if name == MEMORY:
        model |= {"streams": 4, "ways": 3, "slots": 40}
    else:
        model["compile"] = False
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
    config["trainer"] |= {"accelerator": "cpu", "val_check_interval": 10**6, "logger": [logger]}
    del config["results"]
    config |= {"wandb": "disabled", "test_after_fit": False, "checkpoint_last": {"every_n_train_steps": 2}}
    path = folder / f"{name.split('/')[0]}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, root: Path, steps: int, *more: str) -> list[str]:
    return ["fit", "-c", str(config), "--trainer.default_root_dir", str(root), "--trainer.max_steps", str(steps), *more]


def with_sgd(*more: str) -> list[str]:
    """The step is then the gradient, where Adam's would be mostly its sign."""
    return ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", str(LR), *more]


def load(root: Path) -> dict[str, Any]:
    return torch.load(root / "seed_0/checkpoints/last.ckpt", weights_only=True)


def start(script: Path, *arguments: Path | str) -> subprocess.Popen:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HELPERS)])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill_each_under_way(roots: list[Path], process: subprocess.Popen) -> None:
    """SIGKILL to each run as soon as it has a checkpoint."""
    deadline, left = time.monotonic() + 400, set(roots)
    while left:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint after 400 s: {left}"
        for root in list(left):
            if (root / "seed_0/checkpoints/last.ckpt").exists():
                os.kill(int(Path(f"{root}.pid").read_text()), signal.SIGKILL)
                left.remove(root)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """For each cell a run that was killed and resumed (`resumed`), one of the same length that was not (`whole`), and two
    updates by one process (`one`) and by two (`two`); `told`: the errors of each of two ranks."""
    out = tmp_path_factory.mktemp("four")
    configs = {name: small(name, out) for name in CELLS}
    roots = {name: out / "resumed" / name.replace("/", "_") for name in CELLS}
    roots[MEMORY].parent.mkdir()
    (out / "endless.json").write_text(json.dumps({str(roots[n]): fit(configs[n], roots[n], 10**6) for n in CELLS}))
    two = {
        name: fit(configs[name], out / "two" / name, 2, "--trainer.strategy", "ddp", "--trainer.devices", "2", *with_sgd())
        for name in CELLS
    }
    (out / "two.json").write_text(json.dumps(two))
    for name, script in (("launcher", LAUNCHER), ("on_two", TWO)):
        (out / f"{name}.py").write_text(script)
    processes = [start(out / "launcher.py", out / "endless.json"), start(out / "on_two.py", out / "two.json", out / "told")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    killed_at = {}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mamllit"])
            patch.syspath_prepend(HELPERS)
            kill_each_under_way(list(roots.values()), processes[0])
            assert processes[0].wait(timeout=60) == 0
            for name, config in configs.items():
                killed_at[name] = load(roots[name])["global_step"]
                cli.run(fit(config, roots[name], killed_at[name] + 3, "--ckpt_path", "last"))
                cli.run(fit(config, out / "whole" / name, killed_at[name] + 3))
                if name != MEMORY:
                    cli.run(fit(config, out / "one" / name, 2, *with_sgd()))
        printed = processes[1].communicate(timeout=400)[0]
        assert processes[1].returncode == 0, printed
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        torch.set_num_threads(threads)
    told = [json.loads((out / f"told{rank}").read_text()) for rank in (0, 1)]
    return SimpleNamespace(out=out, resumed=roots, killed_at=killed_at, told=told)


@pytest.mark.parametrize("name", CELLS)
def test_a_killed_and_resumed_run_is_the_unbroken_one_bit_for_bit(runs: SimpleNamespace, name: str) -> None:
    resumed, whole = load(runs.resumed[name]), load(runs.out / "whole" / name)
    assert resumed["global_step"] == whole["global_step"] == runs.killed_at[name] + 3 > 3
    assert list(resumed["state_dict"]) == list(whole["state_dict"])
    assert ("memory_keys" in whole["state_dict"]) == (name == MEMORY)
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    (old,), (new,) = whole["optimizer_states"], resumed["optimizer_states"]
    assert old["state"]
    for number, state in old["state"].items():
        for key, value in state.items():
            assert torch.equal(new["state"][number][key], value), f"{key} of parameter {number}"


@pytest.mark.parametrize("name", [name for name in CELLS if name != MEMORY])
def test_two_processes_make_the_steps_of_one(runs: SimpleNamespace, name: str) -> None:
    one, two = (load(runs.out / part / name)["state_dict"] for part in ("one", "two"))
    assert list(one) == list(two)
    begun = load(runs.out / "whole" / name)["state_dict"]
    assert any(not torch.equal(one[key], begun[key]) for key in one)
    for key, value in one.items():  # two steps of LR times a gradient, of which 1e-5 is granted to rounding
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=2e-5 * LR)


def test_the_memory_module_says_on_each_of_two_processes_why_it_trains_on_one(runs: SimpleNamespace) -> None:
    for told in runs.told:
        assert list(told) == [MEMORY]
        assert told[MEMORY].startswith("MemoryStream trains in one process, and there are 2: its streams share a memory that")
