"""experiments/benchmarks: the suite itself, on tiny shapes; what it measures is not judged here."""

import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mamllit.cli import run as run_mamllit
from mamllit.data import SineDataModule

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as `python experiments/benchmarks/run.py` has it

from suite import cli, driver, figures, floor, problems, report, steps, whole  # noqa: E402
from suite.peers import FILES, Unsupported, build  # noqa: E402

pytestmark = pytest.mark.slow  # processes, and other libraries' compilers
QUICK = {key: problems.quick(row) for key, row in problems.ROWS.items()}
SHAPES = ["sine", "omniglot-5w1s-1q", "mini-5s", "sine-fo", "mini-1s-fo"]
JAX_SLOW = [pytest.param(key, marks=pytest.mark.long) for key in ("omniglot-20w1s", "mini-1s")]
TORCH_PEERS = [name for name in FILES if not name.startswith(("mamllit", "jax"))]
LIBRARY = {"learn2learn": "learn2learn", "higher": "higher", "torchopt": "torchopt", "jax": "jax", "jax-map": "jax"}


def gradient(name: str, row: problems.Problem, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    competitor = build(name, row, dtype, "cpu")
    return competitor.gradient(competitor.prepare(problems.converted(problems.episodes(row), dtype, "cpu")))


# ---- the problems and the peers ------------------------------------------------------------------------------------


def test_the_rows_are_those_that_the_readme_names() -> None:
    shapes = {key: (r.tasks, r.ways, r.shots, r.queries, r.inner_steps, r.first_order) for key, r in problems.STEP_ROWS.items()}
    second = {
        "sine": (25, 1, 10, 10, 1),
        "omniglot-5w1s-1q": (32, 5, 1, 1, 1),
        "omniglot-5w1s-15q": (32, 5, 1, 15, 1),
        "omniglot-20w1s": (16, 20, 1, 1, 5),
        "mini-1s": (4, 5, 1, 15, 5),
        "mini-5s": (2, 5, 5, 15, 5),
    }
    assert shapes == {**{k: (*v, False) for k, v in second.items()}, **{f"{k}-fo": (*v, True) for k, v in second.items()}}
    assert [problems.ROWS[f"tasks-{n}"].tasks for n in (1, 256)] == [1, 256]
    assert [problems.ROWS[f"steps-{n}"].inner_steps for n in (1, 50)] == [1, 50]


def test_episodes_are_seeded_and_of_the_row_s_shape() -> None:
    row = QUICK["omniglot-20w1s"]
    batch = problems.episodes(row)
    assert batch.support.x.shape == (row.tasks, row.support_size, 1, row.side, row.side)
    assert batch.query.y.shape == (row.tasks, row.query_size)
    again = problems.episodes(row, 2)
    assert torch.equal(again.query.x, batch.query.x[:2])


def test_sine_batches_are_the_stream_of_the_data_module() -> None:
    row = QUICK["sine"]
    batches = list(problems.sine_batches(row, 18, "cpu"))
    data = SineDataModule(row.shots, row.queries, row.tasks)
    expected = data.build(data.draw(0, "train", row.shots, row.queries, 17 * row.tasks, row.tasks)).episodes
    assert len(batches) == 18
    assert torch.equal(batches[17].query.y, expected.query.y)


@pytest.mark.parametrize("key", SHAPES)
@pytest.mark.parametrize("name", TORCH_PEERS)
def test_the_peers_compute_mamllit_s_meta_gradient(name: str, key: str) -> None:
    if name in LIBRARY:
        pytest.importorskip(LIBRARY[name], reason=f"{name} is not installed")
    try:
        theirs = gradient(name, QUICK[key])
    except Unsupported:
        assert (name, key[-3:]) in {("torchopt", "-fo")}
        return
    driver.check(name, QUICK[key], "float64", theirs, gradient("mamllit-eager", QUICK[key]), 1e-9)


@pytest.mark.parametrize("key", ["sine", "sine-fo", *JAX_SLOW])
@pytest.mark.parametrize("name", ["jax", "jax-map"])
def test_jax_computes_mamllit_s_meta_gradient(name: str, key: str) -> None:
    """Uncompiled, for compiling takes long; what is compiled is compared by every run before it times anything."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    row = dataclasses.replace(QUICK[key], tasks=2)
    with jax.disable_jit():
        theirs = gradient(name, row)
    driver.check(name, row, "float64", theirs, gradient("mamllit-eager", row), 1e-9)


@pytest.mark.parametrize("name", ["mamllit-eager", "learn2learn", "autograd"])
def test_a_step_is_adam_on_the_meta_gradient(name: str) -> None:
    """Adam's first step moves each parameter by the step size against the sign of its gradient."""
    if name in LIBRARY:
        pytest.importorskip(LIBRARY[name], reason=f"{name} is not installed")
    row = QUICK["sine"]
    competitor = build(name, row, torch.float64, "cpu")
    batch = competitor.prepare(problems.converted(problems.episodes(row), torch.float64, "cpu"))
    slope = competitor.gradient(batch)
    before = {key: value.detach().clone() for key, value in competitor.net.named_parameters()}
    competitor.step(batch)
    for key, value in competitor.net.named_parameters():
        moved = slope[key].abs() > 1e-6
        torch.testing.assert_close((value - before[key])[moved], -1e-3 * slope[key].sign()[moved], rtol=1e-2, atol=0)


def test_an_unknown_competitor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no competitor 'l2l'; there are mamllit, "):
        build("l2l", QUICK["sine"], torch.float32, "cpu")


# ---- the comparison of gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_gradient_is_refused(factor: float) -> None:
    row = QUICK["sine"]
    right = gradient("mamllit-eager", row)
    with pytest.raises(driver.Mismatch, match=r"peer on 'sine.*differs from mamllit's by .*nothing is timed"):
        driver.check("peer", row, "float64", {name: factor * value for name, value in right.items()}, right, 1e-6)


def test_a_missing_gradient_is_refused() -> None:
    with pytest.raises(driver.Mismatch, match=r"gradients for \['a'\], the reference for \['a', 'b'\]"):
        driver.relative_error({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})


class Answers:
    """Stands for a worker whose gradient is `factor` times the right one (in float32 `rounded`); a step takes 0.01."""

    def __init__(self, factor: float, seconds: float = 0.0, rounded: float | None = None) -> None:
        self.factors = {"float64": factor, "float32": factor if rounded is None else rounded}
        self.seconds = seconds

    def build(self, row: problems.Problem, dtype: str, tasks: int | None = None) -> None:
        self.dtype = dtype

    def gradient(self) -> tuple[dict[str, torch.Tensor], float]:
        return {"w": torch.full((3,), self.factors[self.dtype], dtype=torch.float64)}, self.seconds

    def ask(self, do: str, **_: int) -> dict[str, float]:
        assert do == "time", "nothing but time is asked"
        return {"seconds": 0.01}


def test_compile_time_is_each_competitor_s_own() -> None:
    team = steps.Team(1, "cpu")
    team._processes = {"mamllit-eager": Answers(1.0), "mamllit": Answers(1.0, 30.0)}  # type: ignore[dict-item]
    for names in (["mamllit", "mamllit-eager"], ["mamllit-eager", "mamllit"]):
        seconds = {entry.name: entry.compile_seconds for entry in steps.ready(QUICK["sine"], names, team, print)}
        assert seconds == pytest.approx({"mamllit": 29.99, "mamllit-eager": 0.0})


def test_nobody_is_timed_beside_a_peer_with_a_wrong_gradient() -> None:
    team = steps.Team(1, "cpu")
    team._processes = {"mamllit-eager": Answers(1.0), "right": Answers(1.0), "wrong": Answers(1.5)}  # type: ignore[dict-item]
    (entry,) = steps.ready(QUICK["sine"], ["right"], team, print)
    assert entry.error64 == entry.error32 == 0.0
    with pytest.raises(driver.Mismatch, match=r"wrong on .* 5\.0e-01 \(float64"):
        steps.ready(QUICK["sine"], ["right", "wrong"], team, print)


@pytest.mark.parametrize(("theirs", "refused"), [(1.12, False), (1.2, True)])
def test_float32_has_to_come_about_as_near_as_mamllit_s_own(theirs: float, refused: bool) -> None:
    """Where rounding takes mamllit 4% off, a peer may be 12% off, and not 20%."""
    team = steps.Team(1, "cpu")
    reference, peer = Answers(1.0, rounded=1.04), Answers(1.0, rounded=theirs)
    team._processes = {"mamllit-eager": reference, "peer": peer}  # type: ignore[dict-item]
    if refused:
        with pytest.raises(driver.Mismatch, match=r"peer on .* 2\.0e-01 \(float32, relative\), more than 2e-01"):
            steps.ready(QUICK["sine"], ["peer"], team, print)
    else:
        assert steps.ready(QUICK["sine"], ["peer"], team, print)[0].error32 == pytest.approx(0.12)


# ---- processes and rounds ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process() -> Iterator[driver.Process]:
    made = driver.Process("autograd", 1, "cpu")
    yield made
    made.close()


def test_a_worker_answers(process: driver.Process) -> None:
    process.build(QUICK["sine"], "float64", 2)
    values, seconds = process.gradient()
    row = dataclasses.replace(QUICK["sine"], tasks=2)
    assert driver.relative_error(values, gradient("autograd", row)) < 1e-12
    assert seconds > 0
    process.build(QUICK["sine"], "float32")
    assert process.ask("time", steps=2)["seconds"] > 0
    assert process.ask("loop", steps=2)["seconds"] > 0
    assert process.ask("memory", steps=1)["bytes"] >= 0
    assert 0 < process.ask("busy", steps=5)["share"] < 1.5
    assert process.ask("matmul", side=64)["flops"] > 1e6


def test_a_worker_s_error_comes_back(process: driver.Process) -> None:
    with pytest.raises(RuntimeError, match=r"autograd: 'time' failed: TypeError"):
        process.ask("time", steps="three")


def test_a_worker_that_cannot_take_part_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.worker import Worker

    worker = Worker("torchopt", "cpu")
    row = dataclasses.asdict(QUICK["sine-fo"])
    monkeypatch.setitem(sys.modules, "torchopt", None)  # import torchopt: ImportError
    monkeypatch.delitem(sys.modules, "suite.peers.torchopt_metasgd", raising=False)
    assert "torchopt" in worker.build(row, "float32", None)["missing"]
    monkeypatch.setitem(sys.modules, "torchopt", ModuleType("torchopt"))
    monkeypatch.delitem(sys.modules, "suite.peers.torchopt_metasgd", raising=False)
    assert worker.build(row, "float32", None) == {"unsupported": "TorchOpt's MetaSGD has no first-order option"}


def test_a_dead_worker_is_reported() -> None:
    made = driver.Process("autograd", 1, "cpu")
    made._process.kill()
    made._process.wait()
    with pytest.raises(RuntimeError, match=r"autograd: the process died in 'time'"):
        made.ask("time", steps=1)
    made._log.close()


def test_ratios_are_taken_round_by_round() -> None:
    base, peer = (steps.Measured(name, QUICK["sine"], 1, "cpu") for name in ("mamllit", "peer"))
    base.rounds, peer.rounds = [1.0, 2.0, 4.0], [3.0, 2.0, 6.0]
    assert steps.ratios(peer, base) == [3.0, 1.0, 1.5]
    first, second = report.records([base, peer], matmul=1e9)
    assert (second["ratio_median"], second["ratio_min"], second["ratio_max"]) == (1.5, 1.0, 3.0)
    assert (second["seconds_median"], second["rounds"], first["ratio_median"]) == (3.0, 3, 1.0)
    with pytest.raises(ValueError, match=r"mamllit or mamllit-eager must be among the competitors, which are \['peer'\]"):
        report.records([peer], matmul=1e9)


# ---- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sine", "sine-fo", "omniglot-5w1s-15q", "omniglot-20w1s", "mini-1s", "mini-5s-fo"])
def test_the_analytic_operations_are_those_that_pytorch_counts(key: str) -> None:
    """But one: the double backward of a convolution computes a gradient for the images too, which nothing needs."""
    row = QUICK[key]
    convolutional = row.channels > 0 and not row.first_order
    needless = row.tasks * row.inner_steps * row.support_size * floor.layer_flops(row)[0] * convolutional
    assert floor.analytic_flops(row) == floor.counted_flops(row) - needless


def test_operations_worked_out_by_hand() -> None:
    """One example each: layers of 2*3, 2*9 and 2*3 operations; 4 and 9 of each in the inner step, 2 and 3 outside."""
    row = dataclasses.replace(problems.ROWS["sine"], tasks=1, shots=1, queries=1, filters=3)
    assert floor.layer_flops(row) == [6, 18, 6]
    assert floor.analytic_flops(row) == (4 * 6 + 9 * 24) + (2 * 6 + 3 * 24)


def test_the_floor_is_operations_over_the_machine_s_rate() -> None:
    entry = steps.Measured("mamllit", QUICK["sine"], 1, "cpu", rounds=[0.5])
    (record,) = report.records([entry], matmul=2e6)
    assert record["floor_seconds"] == floor.analytic_flops(QUICK["sine"]) / 2e6
    assert record["floor_share"] == pytest.approx(record["floor_seconds"] / 0.5)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_quick_command_writes_table_csv_figures_and_facts(tmp_path: Path) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    rows = ["omniglot-5w1s-1q", "steps-1"]
    arguments = ["--quick", "--threads", "1", "--rounds", "2", "--rows", *rows, "--no-memory", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments, "--peers", "mamllit-eager", "learn2learn"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "steps.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == report.COLUMNS
    assert [r["competitor"] for r in table] == ["mamllit-eager", "learn2learn"] * 2
    assert all(float(r["seconds_median"]) > 0 and float(r["error_float64"]) < 1e-9 for r in table)
    text = (tmp_path / "steps.md").read_text()
    assert "| Omniglot 5-way 1-shot, 1 query | " in text and "## cpu, threads: 1" in text
    assert json.loads((tmp_path / "facts.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert (tmp_path / "time_inner_steps_cpu_1threads.png").stat().st_size > 1000


def test_the_command_ends_at_a_wrong_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> list[steps.Measured]:
        raise driver.Mismatch("the peer on 'sine' differs")

    monkeypatch.setattr(cli, "ready", wrong)
    with pytest.raises(SystemExit, match=r"refused: the peer on 'sine' differs"):
        cli.main(["--quick", "--rows", "sine", "--threads", "1", "--out", str(tmp_path)])
    assert not (tmp_path / "steps.csv").exists()


def test_rows_are_chosen_by_key_and_by_group() -> None:
    assert list(cli.chosen(["tasks", "sine"])) == [*(f"tasks-{n}" for n in (1, 4, 16, 64, 256)), "sine"]
    assert cli.chosen(["all"]) == problems.ROWS
    with pytest.raises(ValueError, match=r"there is no row 'sines'; there are sine, .*and the groups step, tasks"):
        cli.chosen(["sines"])


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"--device cuda: this PyTorch finds no CUDA device; use --device cpu"):
        cli.main(["--device", "cuda"])


def test_a_scaling_figure_has_a_line_per_competitor_and_the_proportional_one() -> None:
    entries = [
        steps.Measured(name, problems.ROWS[f"tasks-{n}"], 1, "cpu", rounds=[factor * n])
        for n in (1, 4, 16)
        for name, factor in (("mamllit", 0.1), ("learn2learn", 0.4))
    ]
    table = [record for i in range(0, 6, 2) for record in report.records(entries[i : i + 2], matmul=1e9)]
    (axes,) = figures.scaling(table, "tasks", "seconds_median", "seconds").axes
    assert [line.get_label() for line in axes.lines] == ["mamllit", "learn2learn", "proportional"]
    assert axes.lines[1].get_ydata() == pytest.approx([0.4, 1.6, 6.4])
    assert list(axes.lines[2].get_ydata()) == pytest.approx([0.1, 0.4, 1.6])


# ---- whole runs ----------------------------------------------------------------------------------------------------


def test_a_whole_run_is_extrapolated_from_two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty seconds to start and two per iteration."""
    monkeypatch.setattr(whole, "fit", lambda run, iterations, *_: (30.0 + 2 * iterations, 90.0))
    assert whole.extrapolated(whole.RUNS["mini"], (100, 300), 1, "cpu") == (30.0 + 2 * 60_000, 90.0)
    monkeypatch.setattr(whole, "fit", lambda run, iterations, *_: (20.0 if iterations == 100 else 19.0, 90.0))
    hidden = r"300 iterations took 19.0 s and 100 took 20.0 s: start-up hides the rate; give .* --lengths 1000 3000"
    with pytest.raises(ValueError, match=hidden):
        whole.extrapolated(whole.RUNS["mini"], (100, 300), 1, "cpu")


def test_the_table_of_whole_runs() -> None:
    ours = whole.Whole("mamllit fit", "sine", 100, 100, rounds=[10.0, 20.0], busy=[90.0, 92.0])
    peer = whole.Whole("learn2learn", "sine", 100, 10, rounds=[100.0, 240.0])
    text = whole.whole_markdown([ours, peer], 1, "cuda")
    assert "| sine | learn2learn | 10 of 100 | 170.0 | 0.6 | 11.00 (10.00 to 12.00) | - |" in text
    assert "| sine | mamllit fit | 100 of 100 | 15.0 | 6.7 | 1.00 (1.00 to 1.00) | 91% |" in text


@pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*")  # Lightning's use of jsonargparse
def test_a_whole_image_run_fits_on_random_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mamllit"])  # LightningCLI warns of others
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(whole.configuration(whole.small(whole.RUNS["omniglot"]), 2, "cpu")))
    arguments = ["--wandb", "disabled", "--model.compile", "false", "--trainer.default_root_dir", str(tmp_path)]
    done = run_mamllit(["fit", "-c", str(config), "--test_after_fit", "false", *arguments])
    assert done.trainer.global_step == 2
    assert done.datamodule.pools["train"].images.shape == (48, 1, 16, 16)


def test_a_fit_is_a_process_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.shutil, "which", lambda _: None)  # no nvidia-smi
    monkeypatch.setattr(whole.sys, "executable", "true")
    seconds, busy = whole.fit(whole.RUNS["sine"], 2, 1, "cpu")
    assert seconds > 0
    assert busy != busy  # not a number


def test_a_fit_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"mamllit fit failed with code 1: "):
        whole.fit(whole.RUNS["sine"], 2, 1, "cpu")


def test_a_peer_s_whole_run_is_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "PEER_SECONDS", 0.05)
    run = dataclasses.replace(whole.small(whole.RUNS["sine"]), iterations=1_000_000)
    seconds, measured = whole.peer_loop("autograd", run, 1, "cpu")
    assert 3 <= measured < 1000
    assert seconds > 100
