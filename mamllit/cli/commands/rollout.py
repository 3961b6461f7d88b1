"""`mamllit rollout`: a trained policy in one task; see `mamllit.inference.rollout`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mamllit.inference.rollout import check_video, rollout_policy, write_video
from mamllit.runs.durable import check_place


def task_of(text: str) -> dict[str, float]:
    """The numbers in "goal_x=0.3,goal_y=0.4".

    Raises:
        ValueError: for a part that is no name with a number.
    """
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--task has {part!r}; it must be NAME=NUMBER, with commas between several") from None
    return found


def main(args: Sequence[str]) -> None:
    """Let a trained policy act in a task before and after adapting to it, and film it."""
    parser = ArgumentParser(prog="mamllit rollout", description=main.__doc__)
    parser.add_argument("checkpoint", type=str, help="run directory, or a file from `mamllit export`")
    parser.add_argument("--task", type=str, required=True, help='"goal_velocity=1.5", "goal_x=0.3,goal_y=0.4"')
    parser.add_argument("--steps", type=int, default=1, help="gradient steps (1)")
    parser.add_argument("--trajectories", type=int, default=20, help="per gradient step and per mean return (20)")
    parser.add_argument("--seed", type=int, default=0, help="for initial states and actions (0)")
    parser.add_argument("--video", type=Path | None, default=None, help="one trajectory before and one after, .gif or .mp4")
    parser.add_argument("--trusted", type=list[str], default=[], help="your own packages that the checkpoint may name")
    given = parser.parse_args(list(args))
    task = task_of(given.task)
    if (video := given.video and given.video.expanduser()) is not None:
        check_video(video)
        check_place(video, "--video")
    found = rollout_policy(given.checkpoint, task, given.steps, given.trajectories, given.seed, given.trusted)
    for steps, value in enumerate(found.returns):
        print(f"mean return after {steps} step{'s' * (steps != 1)}: {value:.4g}")
    if video is not None:
        write_video(video, found.frames())
        print(f"video: {video}")
