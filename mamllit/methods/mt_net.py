"""T-net and MT-net: gradient steps in a learned metric, and in a learned subspace of it.

Y. Lee, S. Choi: Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace, ICML 2018, arXiv 1801.05558.
Every layer W x + b is followed by a square matrix T (in a convolution a 1x1 convolution of the output channels), the output
layer too. The inner loop moves W and b only; T is meta-learned. A step on W then moves the product A = T W by
-alpha T T' grad_A: T is the metric. In an MT-net each output unit of a layer also has a bit, drawn once per task with a
meta-learned probability; a unit whose bit is 0 is not moved. The bit is a straight-through Gumbel-softmax of two classes.

T (W x + b) is computed as (T W) x + T b, which is equal and needs no second convolution; so the network itself stays
unchanged, and any network can be warped. Departures: those of `mamllit.methods.maml`; batch norm's parameters are not warped.

    >>> import torch
    >>> from mamllit import Examples, MLP, MTNet, Regression
    >>> method = MTNet(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.core.noise import episode_key, logistic
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.layers import names_in, weight_layers
from mamllit.objectives import Objective, Reduction, task_loss


class MTNet(InnerLoopMethod):
    """MAML whose layers are warped by a meta-learned T: an MT-net with `masked`, a T-net without.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, first_order, frozen: as in `MAML`.
        masked: draw a bit per output unit and task; otherwise all units move.
        temperature: of the Gumbel-softmax, whose gradient stands for that of the bit.
        probability: of a bit being 1, before meta-training, between 0 and 1 (the paper's code: 0.5).

    Raises:
        ValueError: as in `MAML`; for a network without layers to warp, or a temperature or probability out of bounds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        first_order: bool = False,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        masked: bool = True,
        temperature: float = 1.0,
        probability: float = 0.5,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be > 0")
        if not 0 < probability < 1:
            raise ValueError(f"probability is {probability}; it must lie between 0 and 1")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.masked, self.temperature = masked, temperature
        self.adapted = adapted_parameters(backbone, frozen)
        # a layer that is frozen altogether is not warped either: it stays what it is
        weights = weight_layers(backbone)
        self.layers = [layer for layer in weights if backbone.get_parameter(names_in(layer)[0]).requires_grad]
        sizes = [backbone.get_parameter(names_in(layer)[0]).shape[0] for layer in self.layers]
        self.warps = nn.ParameterList(torch.eye(size) for size in sizes)
        start = torch.logit(torch.tensor(probability))
        self.mask_logits = nn.ParameterList(start.expand(size).clone() for size in sizes) if masked else None

    def start(self, ways: int) -> Params:
        return {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}

    def masks(self, support: Examples) -> list[Tensor]:
        """The bits of the task of `support`, per layer [outputs]; 0 or 1, with the gradient of the soft ones."""
        assert self.mask_logits is not None
        key, bits = episode_key(support), []
        for stream, logits in enumerate(self.mask_logits):
            level = logits + logistic(key, stream, logits.shape, logits)
            soft = torch.sigmoid(level / self.temperature)
            bits.append((level > 0).to(soft.dtype) + soft - soft.detach())
        return bits

    def mask_probabilities(self) -> dict[str, Tensor]:
        """The probability of each bit being 1, [outputs] per layer; without masks, ones."""
        if self.mask_logits is None:
            return {layer: torch.ones(warp.shape[0]) for layer, warp in zip(self.layers, self.warps, strict=True)}
        return {layer: torch.sigmoid(z.detach()) for layer, z in zip(self.layers, self.mask_logits, strict=True)}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self.predict(params, support.x), support, support)

        rates: dict[str, float | Tensor] = dict.fromkeys(self.adapted, self.inner_lr)
        if self.masked:  # drawing again gives the bits of the first step: they are the episode's own
            for layer, mask in zip(self.layers, self.masks(support), strict=True):
                for name in names_in(layer):
                    if name in rates:
                        rates[name] = self.inner_lr * mask.reshape(-1, *(1,) * (state[name].dim() - 1))
        return gradient_step(support_loss, state, self.adapted, rates, self.first_order)

    def warped(self, state: Params) -> Params:
        """The parameters of the network that computes T (W x + b): every layer's weight T W and bias T b."""
        own = {**dict(self.backbone.named_parameters()), **state}
        for layer, warp in zip(self.layers, self.warps, strict=True):
            for name in names_in(layer):
                if name in own:
                    own[name] = torch.tensordot(warp, own[name], 1)
        return own

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, self.warped(state), (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)
