"""Weights to and from learn2learn's networks: the same outputs on random images, after moving every weight at random."""

import pytest
import torch
from torch import nn

from mamllit.backbones import MLP, Conv4

l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (tests/requirements-oracle.txt)")
bridge = pytest.importorskip("mamllit.bridges.learn2learn")

NETS = {
    "OmniglotCNN": (lambda: l2l.vision.models.OmniglotCNN(5, 8), (1, 28, 28)),
    "MiniImagenetCNN": (lambda: l2l.vision.models.MiniImagenetCNN(5, 8), (3, 84, 84)),
    "CNN4, 32 x 32": (lambda: l2l.vision.models.CNN4(4, 6, channels=3, embedding_size=4 * 6), (3, 32, 32)),
}
OURS = {
    "stride": lambda scale: Conv4(1, 8, 5, 28, "stride", norm_scale=scale),
    "max_pool": lambda scale: Conv4(3, 8, 5, 84, "max_pool", norm_scale=scale),
}


def moved(net: nn.Module) -> nn.Module:
    net = net.double().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def assert_same(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape, dtype=torch.float64)
    expected = a(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(b.double()(x), expected, rtol=1e-4, atol=1e-5)  # a copy made in float32


@pytest.mark.parametrize("name", NETS)
def test_from_learn2learn_and_back(name: str) -> None:
    make, shape = NETS[name]
    theirs = moved(make())
    ours = bridge.from_learn2learn(theirs)
    assert_same(theirs, ours, shape)
    back = bridge.to_learn2learn(ours)
    assert type(back) is type(theirs)
    assert_same(theirs, back, shape)
    for key, value in back.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(key), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [False, True], ids=["without gamma", "with gamma"])
@pytest.mark.parametrize("name", OURS)
def test_to_learn2learn_and_back(name: str, scale: bool) -> None:
    ours = moved(OURS[name](scale))
    shape = (ours.in_channels, ours.image_size, ours.image_size)
    theirs = bridge.to_learn2learn(ours).train()
    inside = theirs.network if name == "stride" else theirs
    assert type(inside).__name__ == ("OmniglotCNN" if name == "stride" else "CNN4")
    assert_same(ours, theirs, shape)
    back = bridge.from_learn2learn(theirs)
    assert isinstance(back, Conv4)
    assert (back.image_size, back.in_channels, back.out_features) == (ours.image_size, ours.in_channels, 5)
    assert_same(ours, back, shape)


def test_it_takes_a_network_that_was_trained_as_a_method() -> None:
    from mamllit.objectives import Classification

    theirs = moved(l2l.vision.models.OmniglotCNN(5, 8))
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    expected = theirs(x)
    method = bridge.Learn2Learn(bridge.maml(theirs, 0.1), Classification(), 1)
    torch.testing.assert_close(bridge.from_learn2learn(method.backbone).double()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "kind", "message"),
    [
        (
            lambda: l2l.vision.models.OmniglotFC(784, 5),
            TypeError,
            r"the network is a OmniglotFC; weights can be converted only from learn2",
        ),
        (lambda: l2l.vision.models.OmniglotCNN(5, layers=3), ValueError, r"the OmniglotCNN has 3 layers; Conv4 has four"),
        (
            lambda: l2l.vision.models.CNN4(5, max_pool=False),
            ValueError,
            r"the CNN4 has 4 layers without max-pooling; Conv4 has four",
        ),
    ],
)
def test_what_cannot_come_over_is_refused(net, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        bridge.from_learn2learn(net())


@pytest.mark.parametrize(
    ("net", "kind", "message"),
    [
        (lambda: MLP(1, [4], 1), TypeError, r"the network is a MLP; weights can be converted to learn2learn only from a Conv4"),
        (lambda: Conv4(1, 4, None, 28, "stride"), ValueError, r"the Conv4 has no head \(out_features is None\)"),
        (lambda: Conv4(3, 4, 5, 84, "stride"), ValueError, r"images of 3 x 84 x 84; learn2learn's OmniglotCNN takes 1 x 28"),
    ],
)
def test_what_cannot_go_over_is_refused(net, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        bridge.to_learn2learn(net())
