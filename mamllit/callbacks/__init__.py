"""Lightning callbacks: the progress bar, the figures, and the result table and file."""

from mamllit.callbacks.collapse import CollapseAlarm
from mamllit.callbacks.figures import AdaptationFigures
from mamllit.callbacks.progress import StepProgressBar
from mamllit.callbacks.results import ResultWriter

__all__ = ["AdaptationFigures", "CollapseAlarm", "ResultWriter", "StepProgressBar"]
