"""Batch norm by the statistics of the meta-train images, as most systems that are no MAML are tested in their papers.

Those keep running averages while they train. Here the statistics are measured once, with the weights that are to be tested,
which is what a running average estimates (Y. Wu, J. Johnson: Rethinking "Batch" in BatchNorm, 2021, section 3). A prediction
then depends on its own image and the support alone, and a support of five images needs no statistics of its own.
"""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm, wide

Module = TypeVar("Module", bound=nn.Module)


def normalised_by_population(module: Module, network: str, batches: Iterable[Tensor]) -> Module:
    """A copy of `module` whose batch norms use the statistics of `batches` of images; `module` itself stays as it is.

    A norm's mean is the mean of the batches' means, and its variance the mean of their variances, as of running averages.

    Args:
        module: holds the norms, all of them `BatchStatNorm`.
        network: the name of the part of it that takes the images; "" for itself.
        batches: of images [n, C, H, W].

    Raises:
        ValueError: where there is no such norm in the network, or no batch.

    >>> import torch
    >>> from mamllit.backbones import Conv4
    >>> from mamllit.backbones.population import normalised_by_population
    >>> net, images = Conv4(1, 8, None, 28, "stride"), torch.rand(20, 1, 28, 28)
    >>> fixed = normalised_by_population(net, "", [images])
    >>> torch.allclose(fixed(images)[:1], fixed(images[:1]), atol=1e-4)  # an image is normalised alone
    True
    """
    module = copy.deepcopy(module)
    part_of = dict(module.named_modules()).get(network, nn.Module())
    norms = [part for part in part_of.modules() if isinstance(part, BatchStatNorm)]
    if not norms:
        raise ValueError("'population' in batch_norm needs mamllit's BatchStatNorm, and the network has none; leave it out")
    found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = wide(given[0])
        others = [0, *range(2, x.dim())]
        found[norm].append((x.mean(others), x.var(others, correction=0)))

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    for norm in norms:
        norm.watched = True
    with torch.no_grad():
        for images in batches:
            part_of(images)
    for handle in handles:
        handle.remove()
    for norm in norms:
        if not found[norm]:
            raise ValueError("there is no batch of images to take statistics from; give at least one")
        mean, variance = (torch.stack(values).mean(0) for values in zip(*found[norm], strict=True))
        norm.watched, norm.statistics = False, (mean, variance)
    return module
