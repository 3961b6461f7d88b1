"""Four systems, a training step of each as mamllit makes it and as a loop in plain PyTorch makes it, with the same parameters.

A plain loop is what one writes from the paper's equations for a batch, with autograd alone: no vmap, no stages, no compiler, no
operators of `mamllit.kernels`. It borrows the modules that hold the parameters, so that both begin alike.
"""

import copy
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.episode import Episode, Examples
from mamllit.core.noise import episode_key, normal
from mamllit.core.stream import Stream
from mamllit.core.tree import item
from mamllit.data.streams import Presentation
from mamllit.engine.compiling import should_compile
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MANN, MemoryModule, MetaLearnerLSTM, NeuralStatistician
from mamllit.methods.memory_module import EMPTY
from mamllit.systems import MemoryStream


def optimizer_of(document: Mapping[str, Any], parameters: list[Tensor], **settings: bool) -> torch.optim.Optimizer:
    """The YAML's."""
    asked = document["model"]["init_args"]["optimizer"]
    made: torch.optim.Optimizer = pkgutil.resolve_name(asked["class_path"])(parameters, **asked["init_args"] | settings)
    return made


def plainly(document: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML with PyTorch's own layers in the network, as a plain loop has them."""
    changed = copy.deepcopy(dict(document))
    backbone = changed["model"]["init_args"]["method"]["init_args"]["backbone"]
    if isinstance(backbone, dict) and "implementation" in backbone["init_args"]:
        backbone["init_args"]["implementation"] = "plain"
    return changed


class Step(ABC):
    """A training step on a batch that lies there: the gradient, clipped as the YAML says, and the optimiser's update.

    Args:
        method: a copy of it is trained.
        document: the YAML.
    """

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        self.method: Any = copy.deepcopy(method)
        self.trained = list(self.method.parameters())
        self.trainer = document["trainer"]
        self.optimizer = optimizer_of(document, self.trained)

    @abstractmethod
    def backward(self, batch: Any) -> Tensor:
        """Fill the parameters' `.grad`, and give the loss."""

    def __call__(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.backward(batch)
        if clip := self.trainer.get("gradient_clip_val"):
            by_value = self.trainer.get("gradient_clip_algorithm") == "value"
            (nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_)(self.trained, clip)
        self.optimizer.step()
        return loss


class Episodes(Step):
    """mamllit's, for what trains under `MetaLearner`."""

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        setting = document["model"]["init_args"].get("compile", "auto")
        compiled = should_compile(setting, document["trainer"]["max_steps"], torch.device("cpu"))
        self.meta_gradient = MetaGradient(self.method, compiled=compiled)

    def backward(self, batch: Episode) -> Tensor:
        step = self.meta_gradient(batch)
        for parameter, value in zip(self.trained, step.gradient.values(), strict=True):
            parameter.grad = value.clone() if self.trainer.get("gradient_clip_val") else value
        return step.loss


class SharedMemory(Step):
    """mamllit's, for the memory module: `MemoryStream.training_step`, without a Trainer."""

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        own = document["model"]["init_args"]
        sizes = {name: own[name] for name in ("streams", "ways", "slots", "age_noise")}
        self.system = MemoryStream(self.method, **sizes).to(next(self.method.parameters()).dtype)

    def backward(self, batch: Presentation) -> Tensor:
        loss = self.system.training_step(batch, 0)
        loss.backward()
        return loss.detach()


# ---- plain loops -------------------------------------------------------------------------------------------------------


class PlainMANN(Step):
    method: MANN

    def backward(self, batch: Stream) -> Tensor:
        x, y, m = batch.query.x, batch.query.y, self.method
        streams, length = y.shape
        labels = F.one_hot(y, m.ways).to(x.dtype)
        label, hidden = torch.zeros_like(labels[:, 0]), x.new_zeros(streams, m.hidden)
        cell, read_vector = torch.zeros_like(hidden), x.new_zeros(streams, m.content)
        slots = x.new_full((streams, m.slots, m.width), 1e-6)
        usage = F.one_hot(torch.zeros(streams, dtype=torch.long), m.slots).to(x.dtype)
        read, loss = usage[:, None].expand(-1, m.heads, -1), x.new_zeros(())
        for t in range(length):
            seen = torch.cat([x[:, t].flatten(1), label], 1)
            i, f, g, o = (m.given(seen) + m.recurrent(torch.cat([hidden, read_vector], 1))).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            key = m.key(hidden).tanh().view(streams, m.heads, m.width)
            gate = m.gate(hidden).sigmoid()[..., None]
            own = F.one_hot(usage.topk(m.heads, largest=False).indices, m.slots).to(x.dtype)
            write = gate * read + (1 - gate) * own
            slots = slots * (1 - own.sum(1))[..., None] + write.transpose(1, 2) @ key
            read = (F.normalize(key, dim=-1) @ F.normalize(slots, dim=-1).transpose(1, 2)).softmax(-1)
            usage = m.decay * usage + (read + write).detach().sum(1)
            read_vector = (read @ slots).flatten(1)
            loss = loss + F.cross_entropy(m.out(torch.cat([hidden, read_vector], 1)), y[:, t])
            label = labels[:, t]
        loss.backward()
        return loss.detach()


class PlainMemory(Step):
    """A memory that is changed in place, query after query."""

    method: MemoryModule

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        own = document["model"]["init_args"]
        self.ways, self.noise = own["ways"], own["age_noise"]
        like = next(self.method.parameters()).detach()
        self.keys = like.new_zeros(own["slots"], self.method.features)
        self.values = torch.full((own["slots"],), EMPTY)
        self.ages = like.new_zeros(own["slots"])
        self.recent = torch.full((own["streams"] * own["ways"],), EMPTY)

    def backward(self, batch: Presentation) -> Tensor:
        m = self.method
        if batch.place == 0:
            self.keys.zero_(), self.values.fill_(EMPTY), self.ages.zero_(), self.recent.fill_(EMPTY)
        labels = batch.y + self.ways * torch.arange(len(batch.y))
        features = m.backbone(batch.x).flatten(1)
        features = F.dropout(features, 1 - m.keep) if m.keep < 1 else features
        q = F.normalize(m.query(features), dim=-1)
        similarity = q @ self.keys.T
        near = similarity.topk(min(m.neighbours, len(self.keys))).indices
        pool = torch.cat([near, self.recent[labels][:, None].clamp_min(0)], 1)
        own = self.values[pool] == labels[:, None]
        found = similarity.gather(1, pool).clamp_min(0)
        right, wrong = found.masked_fill(~own, 0).amax(1), found.masked_fill(own, 0).amax(1)
        loss = ((wrong - right + m.margin).clamp_min(0) - m.margin).mean()
        loss.backward()
        self.remember(q.detach(), similarity.detach(), labels)
        return loss.detach()

    def remember(self, q: Tensor, similarity: Tensor, labels: Tensor) -> None:
        nearest = similarity.masked_fill(self.values == EMPTY, -2).argmax(1)
        self.ages += 1
        noise = (2 * torch.rand(len(self.ages)) - 1) * self.noise
        oldest = (self.ages + noise).argsort(descending=True, stable=True)[: len(labels)]
        right = self.values[nearest] == labels
        for chosen in (True, False):  # what overwrites comes last
            for b in (right == chosen).nonzero()[:, 0].tolist():
                slot = nearest[b] if chosen else oldest[b]
                self.keys[slot] = F.normalize(self.keys[slot] + q[b], dim=0) if chosen else q[b]
                self.values[slot], self.ages[slot], self.recent[labels[b]] = labels[b], 0, slot


class PlainStatistician(Step):
    """The sets of an episode, [N, n, C, H, W]; `normals`: the noise of context and codes, drawn where None."""

    method: NeuralStatistician
    normals: tuple[Tensor, Tensor] | None = None

    def backward(self, batch: Episode) -> Tensor:
        m, ways = self.method, batch.support.ways
        x = torch.cat([part.x[0].unflatten(0, (ways, -1)) for part in batch], 1)
        size, images = x.shape[1], x.flatten(0, 1)
        if m.dilate > 0:
            thicker = F.max_pool2d(F.pad(images, (0, 1, 0, 1)), 2, stride=1)
            images = torch.where((torch.rand(len(images)) < m.dilate)[:, None, None, None], thicker, images)
        images = torch.bernoulli(images)
        features = m.backbone(images)
        kept = torch.rand(ways, size) < m.keep
        kept[:, 0] = True
        number = kept.sum(1, keepdim=True).to(x.dtype)
        pooled = (F.elu(m.before(features)).unflatten(0, (ways, size)) * kept[..., None]).sum(1) / number
        c_mean, c_log_var = m.after(torch.cat([pooled, number], 1) if m.counts else pooled)
        context_noise, code_noise = self.normals or (torch.randn_like(c_mean), x.new_empty(ways * size, m.code).normal_())
        c = c_mean + (c_log_var / 2).exp() * context_noise
        own = c.repeat_interleave(size, 0)
        z_mean, z_log_var = m.posterior(torch.cat([features, own], 1))
        p_mean, p_log_var = (value.repeat_interleave(size, 0) for value in m.prior(c))
        z = z_mean + (z_log_var / 2).exp() * code_noise
        pixels = m.decoder(torch.cat([own, z], 1)).view_as(images)
        loss = F.binary_cross_entropy_with_logits(pixels, images, reduction="sum") / len(images)
        squares = (z_mean - p_mean).square() / p_log_var.exp() + (z_log_var - p_log_var).exp() - (z_log_var - p_log_var) - 1
        loss = loss + squares.sum() / 2 / len(images)
        loss = loss + (c_mean.square() + c_log_var.exp() - c_log_var - 1).sum() / 2 / len(images)
        loss.backward()
        return loss.detach()


class PlainMetaLearnerLSTM(Step):
    method: MetaLearnerLSTM

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        net = self.method.backbone
        self.names, self.shapes = zip(*((name, value.shape) for name, value in net.named_parameters()), strict=True)
        self.sizes = [shape.numel() for shape in self.shapes]

    def output(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)]
        return functional_call(self.method.backbone, dict(zip(self.names, parts, strict=True)), (x,))

    def backward(self, batch: Episode) -> Tensor:
        m, (support, query) = self.method, item(batch, 0)
        theta = torch.cat([value.flatten() for value in m.backbone.parameters()])
        hidden = cell = theta.new_zeros(len(theta), m.hidden)
        into = forget = theta.new_zeros(len(theta), 1)
        for _ in range(m.inner_steps):
            point = theta.detach().requires_grad_()
            loss = F.cross_entropy(self.output(point, support.x), support.y)
            (gradient,) = torch.autograd.grad(loss, point)
            gradient = gradient / len(support.y) if m.divide else gradient
            seen = torch.cat([_preprocessed(gradient), _preprocessed(loss.detach().expand_as(gradient))], 1)
            i, f, g, o = (m.given(seen) + m.recurrent(hidden)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            known = torch.cat([hidden, theta[:, None]], 1)
            into, forget = m.input(torch.cat([known, into], 1)), m.forget(torch.cat([known, forget], 1))
            theta = forget[:, 0].sigmoid() * theta - into[:, 0].sigmoid() * gradient
        loss = F.cross_entropy(self.output(theta, query.x), query.y)
        loss.backward()
        return loss.detach()


def _preprocessed(x: Tensor, p: float = 10.0) -> Tensor:
    small = x.abs() < torch.tensor(-p).exp()
    size = torch.where(small, -1.0, x.abs().clamp_min(1e-30).log() / p)
    return torch.stack([size, torch.where(small, torch.tensor(p).exp() * x, x.sign())], 1)


def noise_of(method: NeuralStatistician, batch: Episode) -> tuple[Tensor, Tensor]:
    """The normals that mamllit's step draws for the sets of an episode, for a comparison of the two."""
    support = item(batch, 0).support
    key, ways = episode_key(support), support.ways
    size = sum(len(part.y[0]) for part in batch) // ways
    context = normal(key, 3, (ways, method.context), support.x)
    return context, normal(key, 4, (ways, size, method.code), support.x).flatten(0, 1)


# ---- batches -----------------------------------------------------------------------------------------------------------


def batch_of(document: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A batch of random images in the shape that the YAML's data give, of black and white ones where there is one channel."""
    data = document["data"]["init_args"]
    colours = "MiniImagenet" in document["data"]["class_path"]
    side, channels, number = data.get("image_size", 84 if colours else 28), 3 if colours else 1, data["meta_batch_size"]
    ways = data.get("train_ways", data["ways"])

    def images(*shape: int) -> Tensor:
        x = torch.rand(*shape, channels, side, side, dtype=dtype)
        return x if colours else x.round()

    if data.get("presentations"):
        return Presentation(torch.arange(number), 0, images(number), torch.randint(ways, (number,)))
    if length := data.get("length"):
        return Stream.of(images(number, length), torch.randint(ways, (number, length)), ways)

    def part(per_class: int) -> Examples:
        labels = torch.arange(ways).repeat_interleave(per_class).expand(number, -1)
        return Examples(images(number, ways * per_class), labels, ways)

    return Episode(part(data["shots"]), part(data["queries"]))


PAIRS: dict[str, tuple[str, type[Step], type[Step]]] = {
    "MANN": ("mann/omniglot_5way", Episodes, PlainMANN),
    "memory module": ("memory_module/omniglot_5way", SharedMemory, PlainMemory),
    "neural statistician": ("neural_statistician/omniglot_5way_1shot", Episodes, PlainStatistician),
    "meta-learner LSTM": ("meta_learner_lstm/mini_imagenet_5way_1shot", Episodes, PlainMetaLearnerLSTM),
}  # system -> its cell, mamllit's step, the plain loop
