"""Videos of a policy before and after it has adapted: files in the run directory, media in W&B."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from short_fits import make_method, make_trainer

from mamllit.callbacks import AdaptationVideo
from mamllit.data import ControlDataModule
from mamllit.methods import MAML
from mamllit.rl import GaussianPolicy, Navigation, PolicyGradient, Tabular
from mamllit.rl.worlds import World
from mamllit.systems import MetaLearner, MetaPolicy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def policy(world: World) -> tuple[MetaPolicy, ControlDataModule]:
    torch.manual_seed(0)
    method = MAML(GaussianPolicy(world.observations, world.actions, hidden=[8]), PolicyGradient(), 0.1, 1, "mean")
    data = ControlDataModule(world, seed=0, shots=4, queries=4, test_shots=[4], standard_episodes=3, protocols=["standard"])
    return MetaPolicy(method, eval_steps=2), data


def test_a_test_films_its_first_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner, data = policy(Navigation(horizon=9))
    trainer = make_trainer(1, default_root_dir=tmp_path, callbacks=[AdaptationVideo(tasks=2)])
    trainer.test(learner, datamodule=data, verbose=False)
    files = [tmp_path / "videos" / f"task{number}.gif" for number in (0, 1)]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("video")] == [f"video: {x}" for x in files]
    pictures = []
    for file in files:
        with Image.open(file) as found:
            assert found.n_frames == 18, "nine steps before adapting, nine after"
            found.seek(8)
            pictures.append(found.convert("RGB").tobytes())
    assert pictures[0] != pictures[1], "another goal"


def test_a_world_that_cannot_be_drawn_is_refused_at_the_start() -> None:
    learner, data = policy(Tabular())
    with pytest.raises(
        RuntimeError, match=r"Tabular cannot be rendered here \(Tabular draws no pictures.*MUJOCO_GL.*leave Adapt"
    ):
        make_trainer(1, callbacks=[AdaptationVideo()]).fit(learner, datamodule=data)
    with pytest.raises(TypeError, match=r"films a MetaPolicy, and this is a MetaLearner; leave it out"):
        AdaptationVideo().setup(make_trainer(1), MetaLearner(make_method()), "test")
    with pytest.raises(ValueError, match=r"tasks is 0; it must be >= 1"):
        AdaptationVideo(tasks=0)
    with pytest.raises(ValueError, match=r"suffix is '\.avi'; it must be '\.gif' or '\.mp4'"):
        AdaptationVideo(suffix=".avi")


def test_a_video_that_cannot_be_written_ends_no_test(tmp_path: Path) -> None:
    learner, data = policy(Navigation(horizon=2))
    (tmp_path / "videos").write_text("in the way")
    trainer = make_trainer(1, default_root_dir=tmp_path, callbacks=[AdaptationVideo()])
    with pytest.warns(UserWarning, match=r"cannot write the video .*task0\.gif .*`mamllit test` makes it again"):
        trainer.test(learner, datamodule=data, verbose=False)


@pytest.mark.slow
def test_the_half_cheetah_is_media_in_wandb(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    short = [
        "--trainer.max_steps=1", "--data.init_args.meta_batch_size=2", "--data.init_args.shots=2", "--data.init_args.queries=2",
        "--data.init_args.world=mamllit.rl.worlds.locomotion.HalfCheetahDirection", "--data.init_args.world.horizon=5",
        "--data.init_args.standard_episodes=2", "--data.init_args.protocols=[standard]", "--data.init_args.test_shots=[2]",
        "--trainer.callbacks+=mamllit.callbacks.AdaptationVideo", f"--trainer.default_root_dir={tmp_path}", "--wandb=offline",
    ]  # fmt: skip
    command = [sys.executable, "-m", "mamllit.cli", "fit", "-c", "experiments/rl/half_cheetah_direction_maml.yaml", *short]
    said = ""
    for renderer in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": renderer, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        said += done.stdout + done.stderr
        if done.returncode == 0:
            break
        assert "HalfCheetahDirection cannot be rendered here" in said, said[-3000:]
    else:
        pytest.skip(f"no renderer without a screen here: {said[-300:]}")
    (media,) = tmp_path.glob("seed_0/wandb/offline-run-*/files/media/videos/videos/*.gif")
    with Image.open(media) as found:
        assert found.n_frames == 10
    assert media.read_bytes() == (tmp_path / "seed_0" / "videos" / "task0.gif").read_bytes()
