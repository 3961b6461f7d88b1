"""Videos of how a policy adapts, in the run directory and in Weights & Biases."""

from itertools import chain
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from mamllit.data.control import TaskBatch
from mamllit.engine.acting import first_trajectory
from mamllit.inference.rollout import write_video
from mamllit.runs.logs import unharmed
from mamllit.systems.meta_policy import MetaPolicy


class AdaptationVideo(L.Callback):
    """At the end of a test: videos of a policy before it has adapted to a test task, and after.

    They are videos/task0.gif, ... in the run directory, and media in W&B. Enable it with
    `--trainer.callbacks+=mamllit.callbacks.AdaptationVideo`.

    Args:
        tasks: how many test tasks to film.
        suffix: ".gif", or ".mp4", which needs imageio-ffmpeg.

    Raises:
        ValueError: for no tasks, or another suffix.
        TypeError: at the start, for a system that is no `MetaPolicy`.
        RuntimeError: at the start, where the world cannot be drawn on this machine.

    >>> AdaptationVideo(tasks=2).suffix
    '.gif'
    """

    def __init__(self, tasks: int = 1, suffix: str = ".gif") -> None:
        if tasks < 1:
            raise ValueError(f"tasks is {tasks}; it must be >= 1")
        if suffix not in (".gif", ".mp4"):
            raise ValueError(f"suffix is {suffix!r}; it must be '.gif' or '.mp4'")
        self.tasks, self.suffix = tasks, suffix

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, MetaPolicy):
            raise TypeError(f"AdaptationVideo films a MetaPolicy, and this is a {type(pl_module).__name__}; leave it out")
        world = pl_module.control().world
        task = world.tasks(torch.full((1, len(world.task_names)), 0.5))[0]
        try:  # one picture, before hours of training
            next(iter(world.frames(task, torch.zeros(world.reset_noise), torch.zeros(1, world.actions))))
        except Exception as error:
            raise RuntimeError(
                f"{type(world).__name__} cannot be rendered here ({error}); for a MuJoCo world set MUJOCO_GL to egl or osmesa, "
                "or leave AdaptationVideo out"
            ) from error

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MetaPolicy)
        if not trainer.is_global_zero:
            return
        data, evaluation = pl_module.control(), pl_module.evaluation_sets[-1]
        for number in range(min(self.tasks, evaluation.episodes)):
            batch = TaskBatch(*(value.to(pl_module.device) for value in data.draw_for(evaluation, number, 1)))
            filmed = []
            for steps in (0, pl_module.report_step):
                last = pl_module.practise_on(batch, evaluation.shots, steps).last
                filmed.append(first_trajectory(data.world, batch.noise, steps, evaluation.shots, last))
            path = Path(trainer.default_root_dir) / "videos" / f"task{number}{self.suffix}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, chain.from_iterable(data.world.frames(batch.task[0].cpu(), *one) for one in filmed))
            except OSError as error:
                rank_zero_warn(f"cannot write the video {path} ({error.strerror or error}); `mamllit test` makes it again")
                continue
            print(f"video: {path}")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    with unharmed(logger):
                        logger.log_video(f"videos/task{number}", [str(path)])
