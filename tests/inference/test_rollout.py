"""A trained policy in one task: `mamllit rollout`."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mamllit.cli.commands.rollout import main, task_of
from mamllit.inference.rollout import rollout_policy, write_video
from mamllit.methods import MAML
from mamllit.pretrained.files import Checkpoint, write
from mamllit.rl import GaussianPolicy, Navigation, PolicyGradient, Tabular

POLICY = {"class_path": "mamllit.rl.GaussianPolicy", "init_args": {"observations": 2, "actions": 2, "hidden": [8]}}
METHOD = {
    "class_path": "mamllit.methods.MAML",
    "init_args": {
        "backbone": POLICY,
        "objective": {"class_path": "mamllit.rl.PolicyGradient", "init_args": {"inner": "log"}},
        "inner_lr": 0.1,
        "inner_steps": 1,
        "reduction": "mean",
    },
}
DATA = {
    "class_path": "mamllit.data.ControlDataModule",
    "init_args": {"world": {"class_path": "mamllit.rl.Navigation", "init_args": {"horizon": 12}}},
}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    method = MAML(GaussianPolicy(2, 2, hidden=[8]), PolicyGradient(), 0.1, 1, "mean")
    checkpoint = Checkpoint("toy", {"method": METHOD, "report_step": 1}, DATA, {"results": {}})
    write(path := tmp_path / "toy.safetensors", checkpoint, dict(method.state_dict()))
    return path


def test_returns_and_a_video_of_a_task(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "out.gif"
    words = [str(policy), "--task", "goal_x=0.4,goal_y=-0.3", "--steps", "2", "--trajectories", "3", "--video", str(video)]
    main(words)
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit(":")[0] for line in printed] == [
        "mean return after 0 steps", "mean return after 1 step", "mean return after 2 steps", "video",
    ]  # fmt: skip
    with Image.open(video) as found:
        assert (found.n_frames, found.size) == (24, (320, 320))
        red = [x for x in found.convert("RGB").getcolors(1000) or [] if x[1][0] > 150 and x[1][1] < 90]  # type: ignore[index]
        assert red, "the goal"
    values = [float(line.split(": ")[1]) for line in printed[:3]]
    again = rollout_policy(policy, {"goal_x": 0.4, "goal_y": -0.3}, steps=2, trajectories=3)
    assert again.returns == pytest.approx(values, rel=1e-3)


def test_an_mp4_is_written_where_imageio_ffmpeg_is_there(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    frames = Navigation(horizon=3).frames(torch.tensor([0.1, 0.1]), torch.zeros(0), torch.ones(3, 2))
    write_video(tmp_path / "out.mp4", frames)
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_video_that_cannot_be_written_is_told_before_the_policy_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamllit.cli.commands.rollout.rollout_policy", lambda *_: pytest.fail("the policy acted"))
    (tmp_path / "file").touch()
    for video, error in (("out.avi", ValueError), ("file/out.gif", OSError)):
        with pytest.raises(error, match=r"must end in \.gif or \.mp4|name another file with --video"):
            main(["toy", "--task", "goal_x=1", "--video", str(tmp_path / video)])


def test_what_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the task has \['goal'\]; a task of Navigation has \['goal_x', 'goal_y'\]"):
        rollout_policy(policy, {"goal": 1.0})
    with pytest.raises(ValueError, match=r"steps is -1 and trajectories 20; they must be >= 0 and >= 1"):
        rollout_policy(policy, {}, steps=-1)
    with pytest.raises(ValueError, match=r"maml_omniglot_5way_1shot holds a MAML for mamllit\.data\."):
        rollout_policy("maml_omniglot_5way_1shot", {})
    with pytest.raises(ValueError, match=r"--task has 'fast'; it must be NAME=NUMBER, with commas between several"):
        task_of("goal_velocity=1,fast")
    with pytest.raises(ValueError, match=r"out\.avi; its name must end in \.gif or \.mp4"):
        write_video(tmp_path / "out.avi", [])
    with pytest.raises(ValueError, match=r"Tabular draws no pictures; leave --video out"):
        Tabular().frames(torch.zeros(4), torch.zeros(0), torch.zeros(2, 1))
