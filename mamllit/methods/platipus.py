"""PLATIPUS: a learned Gaussian over initialisations, of which each task samples several models.

C. Finn, K. Xu, S. Levine: Probabilistic Model-Agnostic Meta-Learning, NeurIPS 2018, arXiv 1806.02817. Five sets of
meta-parameters: the mean mu (the backbone's own) and variance sigma^2 of the prior over initialisations theta, the variance
v_q of the posterior q in meta-training, and two step sizes, gamma_p and gamma_q, one per parameter tensor. For a task,

    q(theta | query)   = N(mu - gamma_q grad L(mu, query),   v_q)
    p(theta | support) = N(mu - gamma_p grad L(mu, support), sigma^2);

models are sampled from q, adapted on the support by gradient steps, and judged on the query; the meta-loss is their mean loss
plus the weighted KL(q || p). At test they are sampled from p, which knows the support only; their predictions are averaged.

This is not an `InnerLoopMethod`: in meta-training the models are sampled from q, which sees the query, so the meta-loss is
not a function of what `adapt` returns.

Departures: the paper's hyper-parameters were not available, so the defaults follow public re-implementations. The inner loss
is used as the negative log-likelihood; its scale (the noise of a regression) is in `kl_weight`. What the inner loop leaves
alone (batch norm) is not random either.

    >>> import torch
    >>> from mamllit import Examples, MLP, PLATIPUS, Regression
    >>> method = PLATIPUS(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean", kl_weight=0.1)
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.core.noise import episode_key, normal
from mamllit.methods.base import Method
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss


def gaussian_kl(difference: Tensor, log_std_q: Tensor, log_std_p: Tensor) -> Tensor:
    """KL(q || p) of two Gaussians with independent components, summed; `difference` is that of their means."""
    ratio = 2 * (log_std_q - log_std_p)
    return 0.5 * (ratio.exp() + (difference * (-log_std_p).exp()).square() - 1 - ratio).sum()


class PLATIPUS(Method):
    """Sample `models` initialisations per task and adapt each by `inner_steps` gradient steps.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, first_order, frozen: as in `MAML`.
        kl_weight: of the KL divergence, which is summed over the parameters.
        train_models, test_models: how many models are sampled per task.
        gamma: gamma_p and gamma_q before meta-training.
        log_std: log sigma and log sqrt(v_q) of every parameter before meta-training.

    Raises:
        ValueError: as in `MAML`; for a negative weight or fewer than one model.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        kl_weight: float,
        first_order: bool = False,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        train_models: int = 4,
        test_models: int = 10,
        gamma: float = 0.01,
        log_std: float = -4.0,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if kl_weight < 0:
            raise ValueError(f"kl_weight is {kl_weight}; it must be >= 0")
        if min(train_models, test_models) < 1:
            raise ValueError(f"train_models is {train_models} and test_models {test_models}; both must be >= 1")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.kl_weight = inner_lr, inner_steps, kl_weight
        self.reduction, self.first_order = reduction, first_order
        self.train_models, self.test_models = train_models, test_models
        own = dict(backbone.named_parameters())
        self.adapted = adapted_parameters(backbone, frozen)
        self.spread_out = list(self.adapted)  # the names of `log_sigma`, `log_q` and the gammas
        self.log_sigma = nn.ParameterList(torch.full_like(own[name], log_std) for name in self.adapted)
        self.log_q = nn.ParameterList(torch.full_like(own[name], log_std) for name in self.adapted)
        self.gamma_p = nn.Parameter(torch.full((len(self.adapted),), gamma))
        self.gamma_q = nn.Parameter(torch.full((len(self.adapted),), gamma))
        self.start_log_std = log_std

    def mean(self) -> Params:
        """mu, by parameter name."""
        return {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}

    def spread(self) -> dict[str, Tensor]:
        """Mean standard deviations of prior and posterior relative to their initial values; near 0 they have collapsed."""
        stds = {"sigma": self.log_sigma, "q": self.log_q}
        return {
            name: torch.cat([(value.detach() - self.start_log_std).exp().flatten() for value in values]).mean()
            for name, values in stds.items()
        }

    def trajectory(self, support: Examples, steps: int) -> list[Params]:
        """Models sampled from p(theta | support), [P, ...] each, after 0, 1, ..., `steps` inner steps."""
        prior = self._moved(self.gamma_p, support, support)
        return self._adapted(self._sampled(prior, self.log_sigma, support, 0, self.test_models), support, steps)

    def adapt(self, support: Examples, steps: int | None = None) -> Params:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def predictions(self, state: Params, x: Tensor) -> Tensor:
        """The outputs of all models, [P, n, ...]."""
        return vmap(lambda model: functional_call(self.backbone, model, (x,)))(state)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return self.objective.average(self.predictions(state, x))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        support, query = episode
        prior, posterior = self._moved(self.gamma_p, support, support), self._moved(self.gamma_q, query, support)
        sampled = self._sampled(posterior, self.log_q, support, 1, self.train_models)
        outputs = self.predictions(self._adapted(sampled, support, self.inner_steps)[-1], query.x)
        loss = vmap(lambda output: task_loss(self.objective, output, query, support, self.reduction))(outputs).mean()
        stds = zip(self.spread_out, self.log_q, self.log_sigma, strict=True)
        kl = torch.stack(
            [gaussian_kl(posterior[name] - prior[name], q, p) for name, q, p in stds if name in self.adapted]
        ).sum()
        average = self.objective.average(outputs.detach())
        numbers = sum(value.numel() for value in self.log_q)
        logs = {
            self.objective.metric_name: self.objective.metric(average, query.y),
            "kl_per_parameter": kl.detach() / numbers,
            "log_sigma": torch.cat([value.detach().flatten() for value in self.log_sigma]).mean(),
            "log_q": torch.cat([value.detach().flatten() for value in self.log_q]).mean(),
        }
        return loss + self.kl_weight * kl, logs

    def _loss(self, params: Params, examples: Examples, support: Examples) -> Tensor:
        output = functional_call(self.backbone, params, (examples.x,))
        return task_loss(self.objective, output, examples, support, self.reduction)

    def _moved(self, gamma: Tensor, examples: Examples, support: Examples) -> Params:
        """mu after one step of size `gamma` on the loss of `examples`."""
        rates = dict(zip(self.spread_out, gamma, strict=True))
        return gradient_step(lambda p: self._loss(p, examples, support), self.mean(), self.adapted, rates, self.first_order)

    def _sampled(self, mean: Params, log_std: nn.ParameterList, support: Examples, kind: int, models: int) -> Params:
        """`models` samples [P, ...] of the Gaussian; `kind` keeps those of p and q apart."""
        key = episode_key(support)
        return {
            name: mean[name] + scale.exp() * normal(key, 2 * i + kind, (models, *scale.shape), scale)
            for i, (name, scale) in enumerate(zip(self.spread_out, log_std, strict=True))
            if name in self.adapted
        }

    def _adapted(self, models: Params, support: Examples, steps: int) -> list[Params]:
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be >= 0")

        def step(model: Params) -> Params:
            loss = lambda p: self._loss(p, support, support)  # noqa: E731
            return gradient_step(loss, model, self.adapted, self.inner_lr, self.first_order)

        states = [models]
        for _ in range(steps):
            states.append(vmap(step)(states[-1]))
        return states
