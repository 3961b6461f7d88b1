"""Lightning callbacks: the progress bar, the figures, the result table and file, and a tuned step size."""

from mamllit.callbacks.collapse import CollapseAlarm
from mamllit.callbacks.figures import AdaptationFigures
from mamllit.callbacks.progress import StepProgressBar
from mamllit.callbacks.results import ResultWriter
from mamllit.callbacks.tuning import TunedStepSize

__all__ = ["AdaptationFigures", "CollapseAlarm", "ResultWriter", "StepProgressBar", "TunedStepSize"]
