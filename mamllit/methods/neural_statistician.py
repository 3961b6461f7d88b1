"""The neural statistician: a variational autoencoder of sets, which tells classes apart by what it infers of each set.

H. Edwards, A. Storkey: Towards a Neural Statistician, ICLR 2017, arXiv 1606.02185.

A set D of images of one class has a context c, each of its images x a code z:

    p(c) = N(0, I),  p(z | c),  q(z | x, c),  q(c | D)  Gaussian with diagonal covariance,  p(x | z, c)  Bernoulli or Gaussian
    bound(D) = E[sum_x log p(x | z, c)] - KL(q(c | D) || p(c)) - sum_x KL(q(z | x, c) || p(z | c))

Training maximises the bound, divided by the number of images in the set; labels only say which images form a set: the support
and the query of a class together. A task is then solved without adaptation: with N_i = q(c | support of class i) and N_x =
q(c | {x}), a query's logit for class i is - KL(N_i || N_x).

Sample dropout makes q(c | D) useful for few images: in training, some images of a set (never the first) are left out of the
pooled mean, and the number of those kept is given to the network beside the mean.

Settings that the paper leaves open, with defaults of ours: `keep` .8, as in a re-implementation; `dilate` .5, the fraction of
training images drawn one pixel thicker; grey images are binarised at random in each training episode, and rounded in a test.
Departures: batch statistics of support and query together (theirs: running ones at test); no annealed weights of the terms,
which re-implementations start with; log variances are kept in [-10, 10].

With `likelihood: gaussian` the sets may hold real numbers, as in the paper's section 5.1; a test infers their mean and
variance from the context.

    >>> import torch
    >>> from mamllit import Classification, MLP, NeuralStatistician
    >>> from mamllit.methods.neural_statistician import Gaussian, kl
    >>> one, other = Gaussian(torch.zeros(1), torch.zeros(1)), Gaussian(torch.ones(1), torch.zeros(1))
    >>> kl(one, one).item(), kl(one, other).item()  # 0, and half the squared distance of the means
    (0.0, 0.5)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(6, 9))
    >>> method = NeuralStatistician(MLP(9, [8], 5), decoder, Classification(), features=5, code=2, context=4, hidden=7)
    >>> method.gather(torch.rand(3, 2, 1, 3, 3)).mean.shape  # of three sets of two images
    torch.Size([3, 4])
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.statistician import xavier
from mamllit.core.episode import Episode, Examples
from mamllit.core.noise import episode_key, normal, uniform
from mamllit.methods.base import Method
from mamllit.objectives import Objective


class Gaussian(NamedTuple):
    """Gaussians with diagonal covariance: `mean` and `log_var` [..., D]."""

    mean: Tensor
    log_var: Tensor

    def sample(self, normals: Tensor) -> Tensor:
        """What standard `normals` [..., D] become."""
        return self.mean + (self.log_var / 2).exp() * normals


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q), [...]."""
    ratio = p.log_var - q.log_var
    return ((p.mean - q.mean).square() * (-q.log_var).exp() + ratio.exp() - ratio - 1).sum(-1) / 2


class GaussianNet(nn.Module):
    """Hidden layers with ELU, then a linear layer to mean and log variance.

    Args:
        inputs, hidden, outputs: sizes.
        layers: number of hidden layers.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = nn.Linear(sizes[-1], 2 * outputs)

    def forward(self, x: Tensor) -> Gaussian:
        for layer in self.layers:
            x = F.elu(layer(x))
        mean, log_var = self.out(x).chunk(2, -1)
        return Gaussian(mean, log_var.clamp(-10, 10))


class NeuralStatistician(Method):
    """Learn a generative model of sets of images.

    Args:
        backbone: the encoder, [n, C, H, W] -> features [n, D].
        decoder: from context and code, [n, context + code], to the logits of the pixels, [n, C, H, W] or flattened; for a
            Gaussian `likelihood` to their means and then their log variances, [n, 2 * C * H * W].
        objective: `Classification`.
        features: D; 4,096 for `StatisticianEncoder`.
        code: size of z.
        context: size of c.
        hidden: size of the hidden layers between the encoder and the latent variables.
        keep: probability that an image of a training set is pooled, in (0, 1]; the first one always is.
        dilate: probability that a training image is drawn one pixel thicker, in [0, 1].
        likelihood: p(x | z, c): "bernoulli" for black-and-white images; "gaussian" for real numbers, which are not binarised.

    Raises:
        ValueError: for a number out of bounds or an unknown likelihood; for `dilate` with a Gaussian likelihood.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        objective: Objective,
        features: int = 4096,
        code: int = 16,
        context: int = 512,
        hidden: int = 256,
        keep: float = 0.8,
        dilate: float = 0.5,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    ) -> None:
        super().__init__()
        if wrong := [
            f"{name} is {size}; it must be >= 1"
            for name, size in {"features": features, "code": code, "context": context, "hidden": hidden}.items()
            if size < 1
        ]:
            raise ValueError("; ".join(wrong))
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; it must be in (0, 1]")
        if not 0 <= dilate <= 1:
            raise ValueError(f"dilate is {dilate}; it must be in [0, 1]")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood is {likelihood!r}; it must be 'bernoulli' or 'gaussian'")
        if likelihood == "gaussian" and dilate:
            raise ValueError(f"dilate is {dilate}, but likelihood 'gaussian' does not dilate images; set dilate: 0")
        self.backbone, self.decoder, self.objective = backbone, decoder, objective
        self.code, self.context, self.keep, self.dilate, self.likelihood = code, context, keep, dilate, likelihood
        self.before = nn.Linear(features, hidden)
        self.counts = keep < 1  # how many are pooled says something only where some are left out
        self.after = GaussianNet(hidden + self.counts, hidden, context, 2)  # q(c | D) from the pooled features and their number
        self.posterior = GaussianNet(features + context, hidden, code, 3)  # q(z | x, c)
        self.prior = GaussianNet(context, hidden, code, 3)  # p(z | c)
        for module in (self.before, self.after, self.posterior, self.prior):
            module.apply(xavier)

    # ---- q(c | D) ------------------------------------------------------------------------------------------------------

    def pool(self, features: Tensor, kept: Tensor) -> Gaussian:
        """q(c | D) of sets with `features` [..., n, D], of which those with `kept` [..., n] 1 count, those with 0 do not."""
        number = kept.sum(-1, keepdim=True)
        mean = (F.elu(self.before(features)) * kept[..., None]).sum(-2) / number
        return self.after(torch.cat([mean, number], -1) if self.counts else mean)

    def encoded(self, sets: Tensor) -> Tensor:
        """The features [N, n, D] of sets of images [N, n, C, H, W]."""
        return self.backbone(sets.flatten(0, 1)).unflatten(0, sets.shape[:2])

    def gather(self, sets: Tensor) -> Gaussian:
        """q(c | D) of sets of images [N, n, C, H, W], all of them counted."""
        features = self.encoded(sets)
        return self.pool(features, torch.ones_like(features[..., 0]))

    # ---- the verbs -----------------------------------------------------------------------------------------------------

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        features = self.backbone(self.seen(torch.cat([state.x, x])))
        member = F.one_hot(state.y, state.ways).to(features.dtype).mT  # [N, n]
        classes = self.pool(features[: len(state.x)].expand(state.ways, -1, -1), member)
        return self.logits(classes, features[len(state.x) :])

    def logits(self, classes: Gaussian, queries: Tensor) -> Tensor:
        """-KL(N_i || N_x), [n, N], of the posteriors N_i of N sets, for queries with features [n, D]."""
        alone = self.pool(queries[:, None], torch.ones_like(queries[:, :1]))
        return -kl(Gaussian(*(value[None] for value in classes)), Gaussian(*(value[:, None] for value in alone)))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the bound per image, the mean over the N sets of an episode; its log has the terms, and the metric of the query
        as it is drawn here."""
        key, ways = episode_key(episode.support), episode.ways
        parts = [examples.x[examples.y.argsort(stable=True)].unflatten(0, (ways, -1)) for examples in episode]
        sets = self.drawn(torch.cat(parts, 1), key)
        features = self.encoded(sets)
        reconstruction, of_codes, of_context = self.bound(sets, features, key)
        loss = (of_codes + of_context - reconstruction).mean()
        with torch.no_grad():
            support, query = features.split([part.shape[1] for part in parts], 1)
            output = self.logits(self.pool(support, torch.ones_like(support[..., 0])), query.flatten(0, 1))
        logs = {
            self.objective.metric_name: self.objective.metric(output, episode.query.y.sort(stable=True).values),
            "reconstruction": reconstruction.detach().mean(),
            "kl_codes": of_codes.detach().mean(),
            "kl_context": of_context.detach().mean(),
        }
        return loss, logs

    def seen(self, x: Tensor) -> Tensor:
        """Test images, black and white; real numbers as they are."""
        return x.round() if self.likelihood == "bernoulli" else x

    def drawn(self, sets: Tensor, key: Tensor) -> Tensor:
        """Training images [N, n, C, H, W], some of them thicker, black and white by chance; real numbers as they are."""
        if self.likelihood == "gaussian":
            return sets
        thick = uniform(key, 0, sets.shape[:2], sets) < self.dilate
        thicker = F.max_pool2d(F.pad(sets.flatten(0, 1), (0, 1, 0, 1)), 2, stride=1).unflatten(0, sets.shape[:2])
        sets = torch.where(thick[..., None, None, None], thicker, sets)
        return (uniform(key, 1, sets.shape, sets) < sets).to(sets.dtype)

    def bound(self, sets: Tensor, features: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of the bound of sets [N, n, C, H, W] with their `features` [N, n, D], per image, each [N]: log p(x | z, c),
        and the KLs of z and of c."""
        ways, size = sets.shape[:2]
        kept = (uniform(key, 2, (ways, size), sets) < self.keep) | (torch.arange(size, device=sets.device) == 0)
        context = self.pool(features, kept.to(features.dtype))
        c = context.sample(normal(key, 3, (ways, self.context), features))
        own = c[:, None].expand(-1, size, -1)
        codes = self.posterior(torch.cat([features, own], -1))
        z = codes.sample(normal(key, 4, (ways, size, self.code), features))
        reconstruction = self.log_likelihood(sets, torch.cat([own, z], -1)).mean(-1)
        prior = Gaussian(*(value[:, None] for value in self.prior(c)))
        nothing = Gaussian(torch.zeros_like(context.mean), torch.zeros_like(context.log_var))
        return reconstruction, kl(codes, prior).mean(-1), kl(context, nothing) / size

    def log_likelihood(self, sets: Tensor, latent: Tensor) -> Tensor:
        """log p(x | z, c), [N, n], of sets [N, n, C, H, W], with context and code of each image, [N, n, context + code]."""
        decoded = self.decoder(latent.flatten(0, 1))
        if self.likelihood == "bernoulli":  # x log s(l) + (1 - x) log(1 - s(l)), for pixels x of 0 and 1
            logits = decoded.reshape(sets.shape)
            return -F.softplus(torch.where(sets > 0.5, -logits, logits)).flatten(2).sum(-1)
        mean, log_var = (part.reshape(sets.shape) for part in decoded.flatten(1).chunk(2, -1))
        log_var = log_var.clamp(-10, 10)
        return -((sets - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).flatten(2).sum(-1) / 2

    def imagined(self, sets: Tensor, number: int) -> Tensor:
        """For each of N sets of images [N, n, C, H, W] `number` new ones, [N, number, C, H, W]: the mean of p(x | z, c), with c
        at the mean of q(c | D) and z drawn from p(z | c)."""
        c = self.gather(self.seen(sets)).mean
        normals = normal(torch.zeros((), dtype=torch.long, device=c.device), 0, (len(c), number, self.code), c)
        prior = Gaussian(*(value[:, None] for value in self.prior(c)))
        latent = torch.cat([c[:, None].expand(-1, number, -1), prior.sample(normals)], -1).flatten(0, 1)
        decoded = self.decoder(latent)
        mean = decoded.sigmoid() if self.likelihood == "bernoulli" else decoded.flatten(1).chunk(2, -1)[0]
        return mean.reshape(len(c), number, *sets.shape[2:])
