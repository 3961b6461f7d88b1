"""Half-cheetah and ant: the physics against Gymnasium's, ends, threads, tasks."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from short_fits import make_trainer
from torch import Tensor

pytest.importorskip("mujoco", reason='needs pip install "mamllit[rl]"')
gymnasium = pytest.importorskip("gymnasium")

from mamllit.data import ControlDataModule  # noqa: E402
from mamllit.methods import MAML  # noqa: E402
from mamllit.pretrained.files import Checkpoint, write  # noqa: E402
from mamllit.rl import Gaussian, GaussianPolicy, Noise, PolicyGradient, rollout  # noqa: E402
from mamllit.rl.worlds import locomotion  # noqa: E402
from mamllit.rl.worlds.gym import GymWorld  # noqa: E402
from mamllit.systems import MetaPolicy  # noqa: E402


def test_a_batch_is_gymnasium_s_half_cheetah_bit_for_bit_over_200_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = locomotion.HalfCheetahVelocity()
    environment = gymnasium.make("HalfCheetah-v5", frame_skip=1, max_episode_steps=300, reset_noise_scale=0.0)
    environment.reset(seed=0)
    theirs = environment.unwrapped.data
    goal = torch.zeros(1, 1, dtype=torch.float64)
    state, _ = world.reset(goal, torch.zeros(1, 2, world.reset_noise, dtype=torch.float64))
    random = np.random.default_rng(0)
    for _ in range(200):
        action = random.uniform(-1, 1, 6)
        observation = environment.step(action)[0]
        step = world.step(goal, state, torch.from_numpy(action).expand(1, 2, 6))
        state = step.state
        for field in ("qpos", "qvel"):
            assert (getattr(state.batch, field) == getattr(theirs, field)).all()
    torch.testing.assert_close(step.observation[0, 0, :17], torch.from_numpy(observation))
    assert list(tmp_path.iterdir()) == []
    pace = -step.reward[0, 0].item() - 0.05 * float(action @ action)  # |v| where the goal is 0
    assert pace == pytest.approx(abs(np.asarray(step.state.batch.sensordata)[0, 0]), abs=1e-9)


def test_threads_change_nothing_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for threads in (1, 2):
        world = locomotion.AntVelocity(horizon=60, threads=threads)
        torch.manual_seed(0)
        policy = GaussianPolicy(world.observations, world.actions, hidden=[8])
        found.append(rollout(world, world.paper_tasks()[:2], Noise(0, "test", (0, 1)), 0, 5, policy, Gaussian()))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert 0 < found[0].valid.mean() < 1, "some ants fall, and not at once"
    assert list(tmp_path.iterdir()) == []


def test_an_ant_that_has_fallen_stays_where_it_is() -> None:
    world = locomotion.AntDirection(horizon=4)
    task = torch.ones(1, 1)
    state, _ = world.reset(task, torch.zeros(1, 3, world.reset_noise))
    state.batch.qpos[1, 2] = 0.1
    first = world.step(task, state, torch.zeros(1, 3, 8))
    assert first.done.tolist() == [[False, True, False]]
    place = state.batch.qpos[1].copy()
    second = world.step(task, first.state, torch.ones(1, 3, 8))
    assert (second.state.batch.qpos[1] == place).all()
    assert second.reward[0, 0].item() == pytest.approx(second.state.batch.sensordata[0, 0] - 0.005 * 8 + 0.05, abs=1e-5)


def test_numbers_that_are_not_finite_stop_with_the_task_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamllit.rl.trajectories import check_finite

    monkeypatch.chdir(tmp_path)
    world = locomotion.HalfCheetahVelocity(horizon=3)
    still = lambda o: o.new_zeros(*o.shape[:2], 12)  # noqa: E731
    found = rollout(world, torch.tensor([[1.5], [math.nan]]), Noise(0, "test", (0, 1)), 0, 1, still, Gaussian())
    with pytest.raises(FloatingPointError, match=r"in HalfCheetahVelocity are not finite in 1 of 2 tasks: goal_velocity nan"):
        check_finite(found, torch.tensor([[1.5], [math.nan]]), world)
    assert list(tmp_path.iterdir()) == []


def test_tasks_are_the_paper_s() -> None:
    """18 of its 40 directions are forward; standing still on its velocities costs 183.7."""
    assert (
        (locomotion.HalfCheetahDirection().paper_tasks() > 0).sum() == (locomotion.AntDirection().paper_tasks() > 0).sum() == 18
    )
    assert -200 * locomotion.HalfCheetahVelocity().paper_tasks().mean().item() == pytest.approx(-183.709, abs=1e-3)
    numbers = torch.tensor([[0.0], [0.49], [0.5], [0.99]])
    assert locomotion.AntDirection().tasks(numbers).flatten().tolist() == [-1, -1, 1, 1]
    assert locomotion.AntVelocity().tasks(numbers)[3].item() == pytest.approx(2.97)
    with pytest.raises(ValueError, match=r"horizon is 0 and threads 1; both must be >= 1"):
        locomotion.AntVelocity(horizon=0)


class Pendulum(GymWorld):
    task_names = ("mass",)

    def make(self) -> object:
        return gymnasium.make("Pendulum-v1", max_episode_steps=7)

    def set_task(self, env: object, task: list[float]) -> None:
        env.unwrapped.m = task[0]  # type: ignore[attr-defined]

    def tasks(self, numbers: Tensor) -> Tensor:
        return 0.5 + numbers


def test_an_environment_of_one_s_own() -> None:
    """Each trajectory has its task and its start; actions of 1 are the bound; truncation ends it."""
    world, tasks = Pendulum(horizon=10), torch.tensor([[0.5], [1.5]])
    noise = Noise(0, "train", (0, 1))
    act = lambda o: torch.cat([torch.ones_like(o[..., :1]), torch.full_like(o[..., :1], -20.0)], -1)  # noqa: E731
    found = rollout(world, tasks, noise, 0, 2, act, Gaussian())
    assert found.valid.sum(-1).tolist() == [[7, 7], [7, 7]]
    again = rollout(world, tasks, noise, 0, 2, act, Gaussian())
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    environment = gymnasium.make("Pendulum-v1")
    environment.unwrapped.m = 1.5
    start = noise.normal(0, (2, 1))[1, 1, 0]
    observation, _ = environment.reset(seed=int(start.view(torch.int32).abs()))
    total = 0.0
    for t in range(7):
        np.testing.assert_allclose(found.observations[1, 1, t], observation, atol=1e-5)
        observation, reward, *_ = environment.step(np.array([2.0], dtype=np.float32))
        total += float(reward)
    assert found.rewards[1, 1].sum().item() == pytest.approx(total, rel=1e-4)


def test_environments_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"horizon is 0; it must be >= 1"):
        Pendulum(horizon=0)

    class CartPole(Pendulum):
        def make(self) -> object:
            return gymnasium.make("CartPole-v1")

    class Unbounded(Pendulum):
        def make(self) -> object:
            environment = gymnasium.make("Pendulum-v1")
            environment.action_space = gymnasium.spaces.Box(-math.inf, math.inf, (1,))
            return environment

    with pytest.raises(ValueError, match=r"the action_space is Discrete\(2\); it must be a one-dimensional Box"):
        CartPole()
    with pytest.raises(ValueError, match=r"it must have bounds, to which actions in \[-1, 1\] are scaled"):
        Unbounded()


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("kind", [locomotion.HalfCheetahDirection, locomotion.AntVelocity, Pendulum])
def test_a_policy_is_meta_trained_and_tested_there(kind: type) -> None:
    """With trajectories that end early in the meta-batch (ant), and a world without published tasks (the pendulum)."""
    world = kind(horizon=12)
    policy = GaussianPolicy(world.observations, world.actions, hidden=[8])
    learner = MetaPolicy(MAML(policy, PolicyGradient(), 0.1, 1, "mean"), curvature=0.5, eval_steps=1)
    protocols = ["standard"] if kind is Pendulum else ["paper"]
    data = ControlDataModule(world, 3, 3, meta_batch_size=2, test_shots=[2], seed=0, protocols=protocols, standard_episodes=2)  # type: ignore[arg-type]
    trainer = make_trainer(2)
    trainer.fit(learner, datamodule=data)
    trainer.test(learner, datamodule=data, verbose=False)
    assert trainer.global_step == 2
    assert all(summary.mean.isfinite().all() for summary in learner.summaries.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), [("HalfCheetahDirection", "direction"), ("AntVelocity", "goal_velocity")])
def test_a_video_before_and_after_adapting_is_rendered_without_a_screen(kind: str, task: str, tmp_path: Path) -> None:
    """By a process of its own, for MuJoCo chooses its renderer when it is imported."""
    world = getattr(locomotion, kind)(horizon=4)
    init_args = {"observations": world.observations, "actions": world.actions, "hidden": [8]}
    method = {
        "class_path": "mamllit.methods.MAML",
        "init_args": {
            "backbone": {"class_path": "mamllit.rl.GaussianPolicy", "init_args": init_args},
            "objective": {"class_path": "mamllit.rl.PolicyGradient"},
            "inner_lr": 0.1,
            "inner_steps": 1,
            "reduction": "mean",
        },
    }
    where = {"class_path": f"mamllit.rl.worlds.locomotion.{kind}", "init_args": {"horizon": 4}}
    data = {"class_path": "mamllit.data.ControlDataModule", "init_args": {"world": where}}
    weights = dict(MAML(GaussianPolicy(**init_args), PolicyGradient(), 0.1, 1, "mean").state_dict())  # type: ignore[arg-type]
    write(tmp_path / "toy.safetensors", Checkpoint("toy", {"method": method, "report_step": 1}, data, {"results": {}}), weights)
    words = ["rollout", "toy.safetensors", "--task", f"{task}=1", "--trajectories", "2", "--video", "out.gif"]
    probe = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"
    root = str(Path(__file__).parents[2])
    for renderer in ("egl", "osmesa"):
        environment = dict(os.environ) | {"MUJOCO_GL": renderer, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        if subprocess.run([sys.executable, "-c", probe], env=environment, cwd=tmp_path, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("no renderer without a screen: neither EGL nor OSMesa opens here")
    done = subprocess.run(
        [sys.executable, "-m", "mamllit.cli", *words], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "out.gif") as found:
        assert (found.n_frames, found.size) == (8, (320, 240)), "four steps before adapting, four after"
        frames = [np.asarray(frame.convert("RGB"), dtype=np.int64) for frame in ImageSequence.Iterator(found)]
    assert frames[0].std() > 10, "a picture, not one colour"
    assert (frames[0] != frames[3]).any(), "it moves"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gif", "toy.safetensors"]
