"""Half-cheetah and ant with the MAML paper's physics (Finn et al. 2017, section 5.3), all simulations in one MuJoCo batch.

The models are Gymnasium's; what the authors' rllab had otherwise is changed here: one physics step per action, the ant's time
step and contact softness, starts, the velocity (of the centre of mass) in the reward, the observations. Departures: an ant
neither sees contact forces nor pays 0.0005 times their square, which a batch does not compute (re-implementations on MuJoCo 2
had zeros there); returns are those of the MuJoCo that is installed, not of the authors' 1.31.

    pip install "mamllit[rl]"
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mamllit.rl.worlds.base import Step, World

try:
    import gymnasium
    import mujoco
    import mujoco.batch
except ImportError as error:
    raise ImportError('half-cheetah and ant need MuJoCo >= 3.17 and Gymnasium: pip install "mamllit[rl]"') from error

PAPER_TASKS, SIZE = 40, (240, 320)  # SIZE: height and width of a frame
Array = np.ndarray


class Simulations(NamedTuple):
    """T x K simulations under way, and which of them have not ended, [T K]."""

    batch: Any
    alive: Array


class Locomotion(World):
    """The base: a MuJoCo model with a torso whose forward velocity is rewarded. Subclasses say model, reward and end.

    Args:
        horizon: steps of a trajectory.
        threads: that simulate; the results are the same for any number.

    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, horizon: int = 200, threads: int = 1) -> None:
        if horizon < 1 or threads < 1:
            raise ValueError(f"horizon is {horizon} and threads {threads}; both must be >= 1")
        self.horizon, self.threads = horizon, threads
        mujoco.set_mju_user_warning(_ignore)  # else MuJoCo writes MUJOCO_LOG.TXT where the program runs
        self.model = self.make_model()
        self.actions = int(self.model.nu)
        self.reset_noise = int(self.model.nq + self.model.nv)
        self._batches: dict[int, Any] = {}
        self.observations = self._observed(self._batch(1)).shape[-1]

    @abstractmethod
    def make_model(self) -> Any:
        """The MuJoCo model, with the sensors that `measured` makes."""

    @abstractmethod
    def start(self) -> Array:
        """qpos before the noise of a start."""

    @abstractmethod
    def observed(self, batch: Any) -> list[Array]:
        """Parts [n, ...] of an observation."""

    @abstractmethod
    def reward(self, tasks: Tensor, velocity: Tensor, action: Tensor) -> Tensor:
        """Reward [T, K] for the forward velocity [T, K] and the actions [T, K, a] in [-1, 1]."""

    def fallen(self, batch: Any) -> Array:
        """Which simulations end, [n]."""
        return np.zeros(batch.nsim, dtype=bool)

    def _batch(self, simulations: int) -> Any:
        if simulations not in self._batches:
            self._batches.clear()
            batch = mujoco.batch.Batch(self.model, simulations, self.threads)
            for field in ("qpos", "qvel", "ctrl", "sensordata", "xmat"):
                batch.bind(field)
            self._batches[simulations] = batch
        return self._batches[simulations]

    def _observed(self, batch: Any) -> Array:
        return np.concatenate([part.reshape(batch.nsim, -1) for part in self.observed(batch)], axis=1)

    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        shape, numbers = noise.shape[:2], noise.flatten(0, 1).double().cpu().numpy()
        batch = self._batch(len(numbers))
        batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        batch.qpos[:] = self.start() + 0.01 * numbers[:, : self.model.nq]
        batch.qvel[:] = 0.1 * numbers[:, self.model.nq :]
        batch.forward(stage=mujoco.mjtStage.mjSTAGE_VEL)
        observation = torch.from_numpy(self._observed(batch)).to(tasks).unflatten(0, shape)
        return Simulations(batch, np.ones(len(numbers), dtype=bool)), observation

    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        batch, alive = state
        action = action.clamp(-1, 1)
        batch.ctrl[:] = action.flatten(0, 1).double().cpu().numpy()
        if alive.any():
            batch.step(ids=None if alive.all() else alive.nonzero()[0], stage=mujoco.mjtStage.mjSTAGE_VEL)
        velocity = torch.from_numpy(batch.sensordata[:, 0].copy()).to(tasks).unflatten(0, action.shape[:2])
        fallen = self.fallen(batch)
        observation = torch.from_numpy(self._observed(batch)).to(tasks).unflatten(0, action.shape[:2])
        done = torch.from_numpy(fallen).to(tasks.device).unflatten(0, action.shape[:2])
        return Step(Simulations(batch, alive & ~fallen), observation, self.reward(tasks, velocity, action), done)

    def frames(self, task: Tensor, start: Tensor, actions: Tensor) -> Iterator[Array]:
        """Rendered without a screen: set MUJOCO_GL to egl or osmesa where there is none."""
        data, renderer = mujoco.MjData(self.model), mujoco.Renderer(self.model, *SIZE)
        state, _ = self.reset(task[None], start[None, None])
        try:
            for action in actions:
                state = self.step(task[None], state, action[None, None]).state
                data.qpos[:] = state.batch.qpos[0]
                mujoco.mj_forward(self.model, data)
                renderer.update_scene(data, camera="track")
                yield renderer.render().copy()
        finally:
            renderer.close()


class HalfCheetah(Locomotion):
    """The half-cheetah, frame by frame (dt 0.01): observation qpos without x, qvel, centre of mass, 20 numbers; never ends."""

    def make_model(self) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'")  # of Gymnasium's file
            return _measured(_spec("half_cheetah.xml"), "torso").compile()

    def start(self) -> Array:
        return np.asarray(self.model.qpos0)

    def observed(self, batch: Any) -> list[Array]:
        return [batch.qpos[:, 1:], batch.qvel, batch.sensordata[:, 3:6]]


class HalfCheetahVelocity(HalfCheetah):
    """Half-cheetah that is to run at a velocity g ~ U[0, 2]: reward -|v - g| - 0.05 |action|^2.

    >>> import torch
    >>> from mamllit.rl.worlds.locomotion import HalfCheetahVelocity
    >>> world, goal = HalfCheetahVelocity(), torch.tensor([[1.5]])
    >>> world.reset(goal, torch.zeros(1, 20, world.reset_noise))[1].shape
    torch.Size([1, 20, 20])
    """

    task_names = ("goal_velocity",)

    def tasks(self, numbers: Tensor) -> Tensor:
        return 2 * numbers

    def paper_tasks(self) -> Tensor:
        return torch.from_numpy(np.random.RandomState(1).uniform(0.0, 2.0, size=(PAPER_TASKS, 1))).float()

    def reward(self, tasks: Tensor, velocity: Tensor, action: Tensor) -> Tensor:
        return -(velocity - tasks).abs() - 0.05 * action.square().sum(-1)


class HalfCheetahDirection(HalfCheetah):
    """Half-cheetah that is to run forward or backward, d = 1 or -1: reward d v - 0.05 |action|^2.

    >>> import torch
    >>> from mamllit.rl.worlds.locomotion import HalfCheetahDirection
    >>> HalfCheetahDirection().tasks(torch.tensor([[0.2], [0.7]])).flatten().tolist()
    [-1.0, 1.0]
    """

    task_names = ("direction",)

    def tasks(self, numbers: Tensor) -> Tensor:
        return _sign(2 * numbers - 1)

    def paper_tasks(self) -> Tensor:
        return _paper_directions()

    def reward(self, tasks: Tensor, velocity: Tensor, action: Tensor) -> Tensor:
        return tasks * velocity - 0.05 * action.square().sum(-1)


class Ant(Locomotion):
    """The ant (dt 0.02): observes qpos, qvel, torso rotation, centre of mass, 41 numbers; ends with z out of [0.2, 1]."""

    def make_model(self) -> Any:
        spec = _measured(_spec("ant.xml"), "torso")
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solimp[:3] = 0.8, 0.8, 0.01
        return spec.compile()

    def start(self) -> Array:
        return np.asarray(self.model.numeric("init_qpos").data)

    def observed(self, batch: Any) -> list[Array]:
        torso = self.model.body("torso").id
        return [batch.qpos, batch.qvel, batch.xmat[:, torso], batch.sensordata[:, 3:6]]

    def fallen(self, batch: Any) -> Array:
        height = batch.qpos[:, 2]
        sound = np.isfinite(batch.qpos).all(1) & np.isfinite(batch.qvel).all(1)
        return ~(sound & (height >= 0.2) & (height <= 1.0))


class AntVelocity(Ant):
    """Ant that is to run at a velocity g ~ U[0, 3]: reward 1 - |v - g| - 0.005 |action|^2 + 0.05.

    >>> from mamllit.rl.worlds.locomotion import AntVelocity
    >>> AntVelocity().observations
    41
    """

    task_names = ("goal_velocity",)

    def tasks(self, numbers: Tensor) -> Tensor:
        return 3 * numbers

    def paper_tasks(self) -> Tensor:
        return torch.from_numpy(np.random.RandomState(1).uniform(0.0, 3.0, size=(PAPER_TASKS, 1))).float()

    def reward(self, tasks: Tensor, velocity: Tensor, action: Tensor) -> Tensor:
        return 1.05 - (velocity - tasks).abs() - 0.005 * action.square().sum(-1)


class AntDirection(Ant):
    """Ant that is to run forward or backward, d = 1 or -1: reward d v - 0.005 |action|^2 + 0.05.

    >>> from mamllit.rl.worlds.locomotion import AntDirection
    >>> int((AntDirection().paper_tasks() > 0).sum())
    18
    """

    task_names = ("direction",)

    def tasks(self, numbers: Tensor) -> Tensor:
        return _sign(2 * numbers - 1)

    def paper_tasks(self) -> Tensor:
        return _paper_directions()

    def reward(self, tasks: Tensor, velocity: Tensor, action: Tensor) -> Tensor:
        return tasks * velocity - 0.005 * action.square().sum(-1) + 0.05


def _spec(name: str) -> Any:
    return mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / name))


def _measured(spec: Any, body: str) -> Any:
    """The model with the velocity and the place of the centre of mass of what hangs on `body`, as sensors 0 to 5."""
    for kind in (mujoco.mjtSensor.mjSENS_SUBTREELINVEL, mujoco.mjtSensor.mjSENS_SUBTREECOM):
        spec.add_sensor(type=kind, objtype=mujoco.mjtObj.mjOBJ_BODY, objname=body)
    return spec


def _sign(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0, -1.0, 1.0)


def _paper_directions() -> Tensor:
    return _sign(torch.from_numpy(np.random.RandomState(1).uniform(-1.0, 1.0, size=(PAPER_TASKS, 1)))).float()


def _ignore(message: str) -> None:
    """Numbers that are not finite show in observations and rewards, with the task named (`check_finite`)."""
