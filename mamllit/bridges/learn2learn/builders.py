"""learn2learn's algorithms by functions with typed arguments, so that a YAML file can name them.

learn2learn's own constructors carry no types, without which a command line cannot tell a network from a number. In Python,
build the algorithm as you always have.
"""

import learn2learn as l2l
from torch import nn


def maml(backbone: nn.Module, inner_lr: float, first_order: bool = False) -> nn.Module:
    """`l2l.algorithms.MAML`: Finn et al. 2017."""
    return l2l.algorithms.MAML(backbone, lr=inner_lr, first_order=first_order)


def meta_sgd(backbone: nn.Module, inner_lr: float, first_order: bool = False) -> nn.Module:
    """`l2l.algorithms.MetaSGD`: Li et al. 2017; `inner_lr` is where the learned step sizes begin."""
    return l2l.algorithms.MetaSGD(backbone, lr=inner_lr, first_order=first_order)


def meta_curvature(backbone: nn.Module, inner_lr: float, first_order: bool = False, adapt_transform: bool = False) -> nn.Module:
    """`l2l.algorithms.GBML` with `MetaCurvatureTransform`: Park & Oliva 2019.

    `adapt_transform`: change the transform, too, in the inner loop (with the same step size).
    """
    return l2l.algorithms.GBML(
        backbone,
        transform=l2l.optim.MetaCurvatureTransform,
        lr=inner_lr,
        first_order=first_order,
        adapt_transform=adapt_transform,
    )


def kronecker(
    backbone: nn.Module, inner_lr: float, first_order: bool = False, adapt_transform: bool = False, psd: bool = True
) -> nn.Module:
    """`l2l.algorithms.GBML` with a Kronecker-factored linear transform: Arnold et al. 2019 (KFO).

    `psd`: keep the factors positive semi-definite.
    """
    transform = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear, psd=psd)
    return l2l.algorithms.GBML(
        backbone, transform=transform, lr=inner_lr, first_order=first_order, adapt_transform=adapt_transform
    )
