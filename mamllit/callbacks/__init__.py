"""Lightning callbacks: progress, figures, results, W&B's dashboard, starting weights, and the clean stop."""

from mamllit.callbacks.collapse import CollapseAlarm
from mamllit.callbacks.dashboard import WandbDashboard
from mamllit.callbacks.figures import AdaptationFigures
from mamllit.callbacks.progress import StepProgressBar
from mamllit.callbacks.results import ResultWriter
from mamllit.callbacks.sharpness import SharpnessAlarm
from mamllit.callbacks.start_from import StartFrom
from mamllit.callbacks.tuning import TunedStepSize
from mamllit.callbacks.video import AdaptationVideo
from mamllit.runs.checkpoint_io import DurableCheckpointIO
from mamllit.runs.stopping import CleanStop, Stopped

__all__ = [
    "AdaptationFigures",
    "AdaptationVideo",
    "CleanStop",
    "CollapseAlarm",
    "DurableCheckpointIO",
    "ResultWriter",
    "SharpnessAlarm",
    "StartFrom",
    "StepProgressBar",
    "Stopped",
    "TunedStepSize",
    "WandbDashboard",
]
