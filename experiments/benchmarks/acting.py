"""Reinforcement learning, timed: python experiments/benchmarks/acting.py --threads 1 2

Environment steps per second and whole meta-iterations, in turns on the same machine:

- mamllit: all tasks and trajectories act at once; the trust region's products by J'FJ;
- the peers' structure (learn2learn, pytorch-maml-rl, garage): one task after the other, its trajectories in a vector
  environment of Gymnasium, gradients task by task, products by double backward of the divergence, from all steps;
- the floor: MuJoCo's mj_step alone, one simulation, no policy.

Gradient and product of the two are compared on the same trajectories, in double precision, before anything is timed. Both have
the same network, baseline and trust region. Lengths of a step are tried until one will do, so that iterations differ a little.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor
from torch.func import functional_call

from mamllit.core.tree import item
from mamllit.engine.acting import Credit, Practice, practise
from mamllit.engine.cpu import prepare
from mamllit.engine.policy_step import PolicyStep
from mamllit.methods import MAML
from mamllit.rl import (
    GaussianPolicy,
    Happened,
    Navigation,
    Noise,
    PolicyGradient,
    Trajectories,
    TrustRegion,
    World,
    advantages,
    pack,
    rollout,
    unpack,
)
from mamllit.rl.objective import mean_over_steps
from mamllit.rl.worlds.locomotion import HalfCheetahDirection

CREDIT = Credit(0.99, 1.0)
TOLERANCE = 1e-8  # of the two structures' gradients and products in double precision


class NavigationEnv(gymnasium.Env):
    """2D navigation as its peers have it: one point, NumPy."""

    def __init__(self, horizon: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.goal, self.place, self.horizon, self.count = np.zeros(2), np.zeros(2), horizon, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.count = np.zeros(2), 0
        return self.place.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + 0.1 * action.clip(-1, 1)
        self.count += 1
        off = self.place - self.goal
        ended = bool((np.abs(off) < 0.01).all())
        return self.place.astype(np.float32), -float(np.sqrt(off @ off)), ended, self.count >= self.horizon, {}


@dataclass(frozen=True)
class Row:
    """What is timed: a world of mamllit, and one environment of its like for the peers."""

    name: str
    world: World
    make: Callable[[], gymnasium.Env]
    tasks: int
    max_kl: float
    curvature: float  # of the experiment's YAML file


class Peer:
    """Meta-learning task by task."""

    def __init__(self, row: Row, policy: GaussianPolicy, trajectories: int) -> None:
        self.row, self.policy, self.objective = row, policy, PolicyGradient()
        self.parameters = dict(policy.named_parameters())
        self.environment = SyncVectorEnv([row.make] * trajectories, autoreset_mode=AutoresetMode.SAME_STEP)
        self.trajectories = trajectories

    def act(self, parameters: dict[str, Tensor]) -> Trajectories:
        """Trajectories of one task, with leading T = 1; what comes after an end is not valid."""
        observation, valid, steps = self.environment.reset()[0], np.ones(self.trajectories, dtype=np.float32), []
        for t in range(self.row.world.horizon):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            with torch.no_grad():
                mean, log_std = functional_call(self.policy, parameters, (seen,)).chunk(2, -1)
                action = torch.distributions.Normal(mean, log_std.exp()).sample()
            observation, reward, ended, _, _ = self.environment.step(action.clamp(-1, 1).numpy())
            parts = (torch.as_tensor(reward * valid, dtype=torch.float32), torch.from_numpy(valid))
            steps.append((seen, action, *parts, torch.full_like(parts[1], t)))
            valid = valid * ~ended
        return Trajectories(*(torch.stack(parts, 1)[None] for parts in zip(*steps, strict=True)))

    def judged(self, found: Trajectories, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Observations and targets of one task."""
        worth, observations = advantages(found, CREDIT.discount, CREDIT.gae_lambda)[0], found.observations[0]
        with torch.no_grad():
            output = functional_call(self.policy, parameters, (observations,))
        old = self.objective.distribution.log_prob(output, found.actions[0])
        return observations, pack(Happened(found.actions[0], worth, old, found.valid[0]))

    def adapted(self, support: tuple[Tensor, Tensor], create_graph: bool) -> dict[str, Tensor]:
        x, y = support
        loss = self.objective.loss(functional_call(self.policy, self.parameters, (x,)), y)
        gradient = torch.autograd.grad(loss, list(self.parameters.values()), create_graph=create_graph)
        return {name: value - 0.1 * part for (name, value), part in zip(self.parameters.items(), gradient, strict=True)}

    def losses(self, data: Sequence[tuple[Any, Any]], old: Sequence[Tensor], create_graph: bool) -> tuple[Tensor, Tensor]:
        """Mean surrogate loss and divergence over tasks."""
        losses, divergences = [], []
        for (support, (x, y)), before in zip(data, old, strict=True):
            output = functional_call(self.policy, self.adapted(support, create_graph), (x,))
            losses.append(self.objective.surrogate(output, y))
            divergences.append(mean_over_steps(self.objective.distribution.kl(before, output), unpack(y).valid))
        return torch.stack(losses).mean(), torch.stack(divergences).mean()

    def iteration(self) -> None:
        data, old = [], []
        for _ in range(self.row.tasks):
            support = self.judged(self.act(self.parameters), self.parameters)
            own = {name: value.detach() for name, value in self.adapted(support, False).items()}
            query = self.judged(self.act(own), own)
            data.append((support, query))
            with torch.no_grad():
                old.append(functional_call(self.policy, own, (query[0],)))
        self.step(data, old)

    def step(self, data: Sequence[tuple[Any, Any]], old: Sequence[Tensor]) -> None:
        optimizer = TrustRegion(self.parameters.values(), max_kl=self.row.max_kl)
        problem = PeerProblem(self, data, old)
        for value, part in zip(self.parameters.values(), problem.gradient, strict=True):
            value.grad = part
        optimizer.pose(problem)
        optimizer.step()


class PeerProblem:
    """The trust region's problem with products by double backward, as mamllit's peers make them."""

    def __init__(self, peer: Peer, data: Sequence[tuple[Any, Any]], old: Sequence[Tensor]) -> None:
        self.peer, self.data, self.old = peer, data, old
        self.values = list(peer.parameters.values())
        loss, kl = peer.losses(data, old, True)
        self.loss = loss.detach()
        self.gradient = torch.autograd.grad(loss, self.values, retain_graph=True)
        self.of_kl = torch.cat([part.flatten() for part in torch.autograd.grad(kl, self.values, create_graph=True)])

    def begin(self) -> Tensor:
        return self.loss

    def product(self, vector: Tensor) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(self.of_kl @ vector, self.values, retain_graph=True)
        return torch.cat([part.flatten() for part in found])

    def judge(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():  # of the inner step
            loss, kl = self.peer.losses(self.data, self.old, False)
        return loss.detach(), kl.detach()


class Ours:
    """mamllit's training step without Lightning."""

    def __init__(self, row: Row, policy: GaussianPolicy, trajectories: int, curvature: float) -> None:
        self.row, self.trajectories, self.curvature, self.count = row, trajectories, curvature, 0
        self.method = MAML(policy, PolicyGradient(), 0.1, 1, "mean")
        self.parameters = list(self.method.parameters())
        self.optimizer = TrustRegion(self.parameters, max_kl=row.max_kl)

    def noise(self) -> Noise:
        self.count += 1
        return Noise(0, "train", tuple(range(self.count * self.row.tasks, (self.count + 1) * self.row.tasks)))

    def act(self) -> None:
        def policy(observation: Tensor) -> Tensor:
            return self.method.predict(own, observation.flatten(0, 1)).unflatten(0, observation.shape[:2])

        own, distribution = self.method.start(1), self.method.objective.distribution
        rollout(self.row.world, tasks_of(self.row), self.noise(), 0, self.trajectories, policy, distribution)

    def practise(self) -> Practice:
        return practise(self.method, self.row.world, tasks_of(self.row), self.noise(), [self.trajectories] * 2, CREDIT)

    def iteration(self) -> None:
        step = PolicyStep(self.method, self.practise(), self.parameters, self.curvature, self.count)
        for value, part in zip(self.parameters, step.gradient()[1], strict=True):
            value.grad = part
        self.optimizer.pose(step)
        self.optimizer.step()


def tasks_of(row: Row) -> Tensor:
    return row.world.tasks(torch.rand(row.tasks, len(row.world.task_names), generator=torch.Generator().manual_seed(0)))


def check(row: Row, trajectories: int) -> None:
    """Raise `RuntimeError` where the two structures' gradients or products differ."""
    torch.manual_seed(0)
    policy = GaussianPolicy(row.world.observations, row.world.actions).double()
    ours = Ours(row, policy, trajectories, 1.0)
    tasks = tasks_of(row).double()
    practice = practise(ours.method, row.world, tasks, ours.noise(), [trajectories] * 2, CREDIT)
    step, peer = PolicyStep(ours.method, practice, ours.parameters), Peer(row, policy, trajectories)
    data = [
        tuple((part.x, part.y) for part in (item(practice.supports[0], task), item(practice.query, task)))
        for task in range(row.tasks)
    ]
    problem = PeerProblem(peer, data, list(practice.outputs))  # type: ignore[arg-type]
    vector = torch.randn(sum(value.numel() for value in ours.parameters), dtype=torch.float64)
    mine = torch.cat([part.flatten() for part in step.gradient()[1]])
    theirs = torch.cat([part.flatten() for part in problem.gradient])
    for what, one, other in (("gradients", mine, theirs), ("products", step.product(vector), problem.product(vector))):
        error = float((one - other).norm() / other.norm())
        if not error < TOLERANCE:
            raise RuntimeError(f"the {what} of the two structures differ in {row.name}: relative error {error:g}")


def floor(row: Row, steps: int) -> None:
    """MuJoCo's own step, as often as asked for, with a new random action every tenth."""
    model = row.world.model  # type: ignore[attr-defined]
    data, random = mujoco.MjData(model), np.random.default_rng(0)
    for t in range(steps):
        if t % 10 == 0:
            data.ctrl[:] = random.uniform(-1, 1, model.nu)
        mujoco.mj_step(model, data)


class Time(NamedTuple):
    """Seconds of the clock and of the CPU."""

    clock: float
    cpu: float


def timed(work: Callable[[], object]) -> Time:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return Time(time.perf_counter() - clock, time.process_time() - cpu)


def measure(row: Row, trajectories: int, rounds: int) -> dict[str, list[Time]]:
    """Everybody's times, round by round, in turns."""
    torch.manual_seed(0)

    def policy(observations: int) -> GaussianPolicy:
        return GaussianPolicy(observations, row.world.actions)

    thin, whole = (Ours(row, policy(row.world.observations), trajectories, share) for share in (row.curvature, 1.0))
    peer = Peer(row, policy(row.make().observation_space.shape[0]), trajectories)  # type: ignore[index]
    work: dict[str, Callable[[], object]] = {
        "acting, mamllit": thin.act,
        "acting, task by task": lambda: [peer.act(peer.parameters) for _ in range(row.tasks)],
        f"iteration, mamllit, curvature {row.curvature:g}": thin.iteration,
        "iteration, mamllit, curvature 1": whole.iteration,
        "iteration, task by task": peer.iteration,
    }
    if hasattr(row.world, "model"):
        work["acting, floor"] = lambda: floor(row, row.tasks * trajectories * row.world.horizon)
    thin.act(), thin.iteration()  # warm
    taken = [{name: timed(run) for name, run in work.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in taken] for name in work}


def rows(threads: int, horizon: int | None, tasks: int | None) -> list[Row]:
    point, cheetah = Navigation(horizon or 100), HalfCheetahDirection(horizon or 200, threads=threads)
    return [
        Row("2D navigation", point, lambda: NavigationEnv(point.horizon), tasks or 20, 0.01, 0.1),
        Row("half-cheetah", cheetah, lambda: gymnasium.make("HalfCheetah-v5", frame_skip=1), tasks or 20, 0.02, 0.3),
    ]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trajectories", type=int, default=20, help="of a task for each update (20)")
    parser.add_argument("--tasks", type=int, default=None, help="of a meta-batch (20)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script out")
    asked = parser.parse_args(arguments)
    horizon = None
    if asked.quick:
        asked.rounds, asked.trajectories, asked.tasks, horizon = 1, 3, 2, 5
    prepare(torch.device("cpu"))
    found = []
    for row in rows(1, 5, 2):
        check(row, 3)
    print("gradients and products of the two structures agree in double precision")
    print(f"torch {torch.__version__}, MuJoCo {mujoco.__version__}, Gymnasium {gymnasium.__version__}, {asked.rounds} rounds\n")
    print("| world | threads | what | s, median | CPU s | env. steps / s | mamllit is x times as fast |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for threads in asked.threads:
        torch.set_num_threads(threads)
        for row in rows(threads, horizon, asked.tasks):
            times = measure(row, asked.trajectories, asked.rounds)
            steps = row.tasks * asked.trajectories * row.world.horizon
            for what, own in times.items():
                kind = what.partition(",")[0]
                first = next(values for name, values in times.items() if name.startswith(f"{kind}, mamllit"))
                ratios = [theirs.clock / ours.clock for theirs, ours in zip(own, first, strict=True)]
                clock, cpu = (statistics.median(getattr(value, part) for value in own) for part in Time._fields)
                made = steps * (2 if kind == "iteration" else 1)
                entry = {"world": row.name, "threads": threads, "what": what, "clock": clock, "cpu": cpu, "steps": made / clock}
                found.append(entry | {"ratio": statistics.median(ratios)})
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"| {row.name} | {threads} | {what} | {clock:.3g} | {cpu:.3g} | {made / clock:,.0f} | {spread} |")
    return found


if __name__ == "__main__":
    main()
