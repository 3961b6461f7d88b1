"""A trained policy in one task of your choice: returns before and after adapting, and a video."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mamllit.engine.acting import Credit, StepByStep, first_trajectory, practise
from mamllit.pretrained.build import build, rebuild
from mamllit.pretrained.export import export
from mamllit.pretrained.files import read
from mamllit.rl import Noise, World

FRAMES = 25  # a second


class Adapted(NamedTuple):
    """Mean `returns` after 0, 1, ..., n steps; the `world`, the `task` [p]; one trajectory `before` and one `after`."""

    returns: list[float]
    world: World
    task: Tensor
    before: tuple[Tensor, Tensor]  # the noise of its start, and its actions [length, a]
    after: tuple[Tensor, Tensor]

    def frames(self) -> Iterable[np.ndarray]:
        """The trajectory before adapting, then the one after."""
        for start, actions in (self.before, self.after):
            yield from self.world.frames(self.task, start, actions)


def rollout_policy(
    checkpoint: str | Path,
    task: Mapping[str, float],
    steps: int = 1,
    trajectories: int = 20,
    seed: int = 0,
    trusted: Sequence[str] = (),
) -> Adapted:
    """Let a trained policy act in a task, and adapt to it by `steps` gradient steps.

    Args:
        checkpoint: the directory of a run, whose last weights are taken, or a file that `mamllit export` wrote.
        task: the numbers of the task by name, e.g. {"goal_x": 0.3, "goal_y": 0.4}.
        trajectories: for each step, and for each mean return.
        seed: of starts and actions.
        trusted: packages of yours whose classes the checkpoint may name; their code is run.

    Raises:
        ValueError: for a checkpoint of no policy, for names that are not the task's, and for numbers below their bounds.
    """
    if steps < 0 or trajectories < 1:
        raise ValueError(f"steps is {steps} and trajectories {trajectories}; they must be >= 0 and >= 1")
    with TemporaryDirectory(prefix="mamllit-") as folder:
        path = Path(checkpoint).expanduser()
        found, tensors = read(
            export(path, out=Path(folder) / "run.safetensors", trusted=trusted) if path.is_dir() else checkpoint
        )
    method = rebuild(found, tensors, trusted)
    world = build((found.data.get("init_args") or {}).get("world"), trusted)
    if not isinstance(world, World) or not isinstance(method, StepByStep):
        raise ValueError(f"{found.name} holds a {type(method).__name__} for {found.data['class_path']}, not a policy")
    if set(task) != set(world.task_names):
        raise ValueError(f"the task has {sorted(task)}; a task of {type(world).__name__} has {list(world.task_names)}")
    numbers = torch.tensor([[float(task[name]) for name in world.task_names]])
    credit = Credit(found.model.get("discount", 0.99), found.model.get("gae_lambda", 1.0))
    refill = (found.data.get("init_args") or {}).get("budget") == "steps"
    shares, noise = (1.0, found.model.get("later_steps", 0.5)), Noise(seed, "test", (0,))

    def acted(after: int) -> tuple[list[float], tuple[Tensor, Tensor]]:
        practice = practise(method, world, numbers, noise, [trajectories] * (after + 1), credit, shares, refill=refill)
        return practice.returns[0].tolist(), first_trajectory(world, noise, after, trajectories, practice.last)

    return Adapted(acted(steps)[0], world, numbers[0], acted(0)[1], acted(steps)[1])


def check_video(path: Path) -> None:
    """`ValueError` for another ending than .gif and .mp4, and for an .mp4 without imageio-ffmpeg."""
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"the video file is {path}; its name must end in .gif or .mp4")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError(f'{path} needs imageio-ffmpeg (pip install "mamllit[rl]"); a .gif needs nothing')


def write_video(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write pictures as a GIF, or, with imageio-ffmpeg installed, as an MP4. Raises what `check_video` raises."""
    check_video(path)
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=rest, duration=1000 // FRAMES, loop=0)
    else:
        import imageio_ffmpeg

        pictures = iter(frames)
        first_frame = next(pictures)
        writer = imageio_ffmpeg.write_frames(
            str(path), first_frame.shape[1::-1], fps=FRAMES, macro_block_size=1, ffmpeg_log_level="error"
        )
        writer.send(None)
        writer.send(np.ascontiguousarray(first_frame))
        for frame in pictures:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
