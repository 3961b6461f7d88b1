"""The meta-learning methods: one file per paper, each written for one episode."""

from mamllit.methods.anil import ANIL
from mamllit.methods.base import Method
from mamllit.methods.bmaml import BMAML
from mamllit.methods.cavia import CAVIA
from mamllit.methods.fine_tuning import FineTuning
from mamllit.methods.imaml import IMAML
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.joint import JointTraining
from mamllit.methods.linear_probe import LinearProbe
from mamllit.methods.llama import LLAMA
from mamllit.methods.maml import MAML
from mamllit.methods.maml_plus_plus import MAMLPlusPlus
from mamllit.methods.mann import MANN, LSTMLearner
from mamllit.methods.matching import MatchingNetworks
from mamllit.methods.memory_module import MemoryModule
from mamllit.methods.meta_learner_lstm import MetaLearnerLSTM
from mamllit.methods.meta_sgd import MetaSGD
from mamllit.methods.mt_net import MTNet
from mamllit.methods.multi_task import MultiTask
from mamllit.methods.nearest_neighbour import NearestNeighbour
from mamllit.methods.neural_statistician import NeuralStatistician
from mamllit.methods.platipus import PLATIPUS
from mamllit.methods.prototypical import PrototypicalNetworks
from mamllit.methods.reptile import Reptile
from mamllit.methods.siamese import SiameseNetworks

__all__ = [
    "ANIL",
    "BMAML",
    "CAVIA",
    "IMAML",
    "LLAMA",
    "MAML",
    "MANN",
    "PLATIPUS",
    "FineTuning",
    "InnerLoopMethod",
    "JointTraining",
    "LSTMLearner",
    "LinearProbe",
    "MAMLPlusPlus",
    "MTNet",
    "MatchingNetworks",
    "MemoryModule",
    "MetaLearnerLSTM",
    "MetaSGD",
    "Method",
    "MultiTask",
    "NearestNeighbour",
    "NeuralStatistician",
    "PrototypicalNetworks",
    "Reptile",
    "SiameseNetworks",
]
