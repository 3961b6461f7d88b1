"""learn2learn's algorithms, task sets, benchmarks and networks in mamllit (docs/learn2learn.md has the table "there -> here").

github.com/learnables/learn2learn, Arnold et al. 2020, arXiv 2008.12284; tried with version 0.2.0.
"""

try:
    import learn2learn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "mamllit.bridges.learn2learn needs learn2learn, which is not installed; `pip install -r tests/requirements-oracle.txt` "
        "in mamllit's repository builds it, on every Python that mamllit supports"
    ) from error

from mamllit.bridges.learn2learn.algorithm import Learn2Learn
from mamllit.bridges.learn2learn.builders import kronecker, maml, meta_curvature, meta_sgd
from mamllit.bridges.learn2learn.pools import ClassPoolDataset, pool_tasksets
from mamllit.bridges.learn2learn.tasksets import BenchmarkDataModule, TasksetDataModule
from mamllit.bridges.learn2learn.weights import HalfTurn, from_learn2learn, to_learn2learn

__all__ = [
    "BenchmarkDataModule",
    "ClassPoolDataset",
    "HalfTurn",
    "Learn2Learn",
    "TasksetDataModule",
    "from_learn2learn",
    "kronecker",
    "maml",
    "meta_curvature",
    "meta_sgd",
    "pool_tasksets",
    "to_learn2learn",
]
