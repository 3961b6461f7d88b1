"""Reinforcement learning: worlds, policies, trajectories, the policy gradient and the trust region; plain torch.

"Trajectory" is what a policy does in one task; an *episode* is a task's support and query, here trajectories before and after.
"""

from mamllit.rl.advantages import advantages, baseline
from mamllit.rl.distributions import Categorical, Distribution, Gaussian
from mamllit.rl.noise import Noise
from mamllit.rl.objective import Happened, PolicyGradient, pack, unpack
from mamllit.rl.policy import GaussianPolicy
from mamllit.rl.proximal import ProximalAdam
from mamllit.rl.trajectories import Trajectories, rollout
from mamllit.rl.trust_region import TrustRegion
from mamllit.rl.worlds import Navigation, Revealed, Tabular, World

__all__ = [
    "Categorical",
    "Distribution",
    "Gaussian",
    "GaussianPolicy",
    "Happened",
    "Navigation",
    "Noise",
    "PolicyGradient",
    "ProximalAdam",
    "Revealed",
    "Tabular",
    "Trajectories",
    "TrustRegion",
    "World",
    "advantages",
    "baseline",
    "pack",
    "rollout",
    "unpack",
]
