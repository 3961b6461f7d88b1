"""mamllit: Model-Agnostic Meta-Learning and the systems it is compared with, as a PyTorch Lightning application.

    import mamllit
    method = mamllit.MAML(mamllit.MLP(1, [40, 40], 1), mamllit.Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    learner = mamllit.MetaLearner(method)

What is listed here is imported when it is first asked for: `import mamllit` itself takes milliseconds.
"""

# ruff: noqa: F401  (the imports for type checkers)
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FROM = {
    "mamllit.backbones": ["MLP", "Conv4", "ResNet12"],
    "mamllit.core.episode": ["Episode", "EpisodeBatch", "Examples"],
    "mamllit.core.stream": ["Stream"],
    "mamllit.data": [
        "ClassPool", "ControlDataModule", "EpisodicDataModule", "FrequencySineDataModule", "ImageDataModule",
        "ImageFolderDataModule", "MiniImagenetDataModule", "OmniglotDataModule", "OmniglotPairsDataModule",
        "OmniglotStreamDataModule", "SineDataModule", "SineLineDataModule",
    ],
    "mamllit.inference": ["adapt_folder", "fewshot"],
    "mamllit.methods": [
        "ANIL", "BMAML", "CAVIA", "IMAML", "LLAMA", "MAML", "MANN", "PLATIPUS", "FineTuning", "JointTraining",
        "LSTMLearner", "LinearProbe", "MAMLPlusPlus", "MTNet", "MatchingNetworks", "MemoryModule", "MetaLearnerLSTM",
        "MetaSGD", "Method", "MultiTask", "NearestNeighbour", "NeuralStatistician", "PrototypicalNetworks", "Reptile",
        "SiameseNetworks",
    ],
    "mamllit.objectives": ["Classification", "Regression"],
    "mamllit.pretrained": ["load"],
    "mamllit.systems": ["EpisodicSystem", "MemoryStream", "MetaLearner", "MetaPolicy", "PreTrainer"],
}  # fmt: skip
_HOME = {name: module for module, names in _FROM.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mamllit.backbones import MLP, Conv4, ResNet12
    from mamllit.core.episode import Episode, EpisodeBatch, Examples
    from mamllit.core.stream import Stream
    from mamllit.data import (
        ClassPool,
        ControlDataModule,
        EpisodicDataModule,
        FrequencySineDataModule,
        ImageDataModule,
        ImageFolderDataModule,
        MiniImagenetDataModule,
        OmniglotDataModule,
        OmniglotPairsDataModule,
        OmniglotStreamDataModule,
        SineDataModule,
        SineLineDataModule,
    )
    from mamllit.inference import adapt_folder, fewshot
    from mamllit.methods import (
        ANIL,
        BMAML,
        CAVIA,
        IMAML,
        LLAMA,
        MAML,
        MANN,
        PLATIPUS,
        FineTuning,
        JointTraining,
        LinearProbe,
        LSTMLearner,
        MAMLPlusPlus,
        MatchingNetworks,
        MemoryModule,
        MetaLearnerLSTM,
        MetaSGD,
        Method,
        MTNet,
        MultiTask,
        NearestNeighbour,
        NeuralStatistician,
        PrototypicalNetworks,
        Reptile,
        SiameseNetworks,
    )
    from mamllit.objectives import Classification, Regression
    from mamllit.pretrained import load
    from mamllit.systems import EpisodicSystem, MemoryStream, MetaLearner, MetaPolicy, PreTrainer


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = found
        return found
    if not name.startswith("_") and importlib.util.find_spec(f"mamllit.{name}") is not None:
        return importlib.import_module(f"mamllit.{name}")
    raise AttributeError(f"module 'mamllit' has no attribute {name!r}; it offers {', '.join(__all__)}, and its sub-packages")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
