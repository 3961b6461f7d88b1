"""The meta-learning methods: one file per paper, each written for one episode."""

from mamllit.methods.anil import ANIL
from mamllit.methods.base import InnerLoopMethod, Method
from mamllit.methods.bmaml import BMAML
from mamllit.methods.maml import MAML
from mamllit.methods.meta_sgd import MetaSGD
from mamllit.methods.mt_net import MTNet
from mamllit.methods.platipus import PLATIPUS
from mamllit.methods.reptile import Reptile

__all__ = ["ANIL", "BMAML", "MAML", "PLATIPUS", "InnerLoopMethod", "MTNet", "MetaSGD", "Method", "Reptile"]
