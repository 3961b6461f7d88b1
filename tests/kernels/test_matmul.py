"""`mamllit.kernels.matmul`: which CPUs take oneDNN, that nothing is rounded by it, and that what was set is set again."""

from collections.abc import Iterator

import pytest
import torch

from mamllit.backbones import Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.kernels import matmul as products
from mamllit.methods import MAML
from mamllit.objectives import Classification

IMAGES = torch.zeros(2, 5, 1, 28, 28)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    products.onednn_is_better.cache_clear()
    yield
    products.onednn_is_better.cache_clear()
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that oneDNN is faster on, whatever this one is."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(products, "_is_exact", lambda: True)


def setting_within(x: torch.Tensor) -> str:
    with products.fast_products(x):
        return torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("vendor", "capability", "exact", "better"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX512", False, False),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
        ("", "AVX512", True, False),
    ],
)
def test_only_where_it_is_faster_and_exact(
    vendor: str, capability: str, exact: bool, better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(products, "_is_exact", lambda: exact)
    assert products.onednn_is_better() is better
    assert setting_within(IMAGES) == ("medium" if better else "highest")


def test_rounding_to_bfloat16_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: product(a.bfloat16(), b.bfloat16()).float())
    assert not products._is_exact()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("amd")
def test_the_setting_is_restored_and_a_user_s_stays() -> None:
    assert setting_within(IMAGES) == "medium"
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(KeyError), products.fast_products(IMAGES):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
    assert setting_within(IMAGES[:, 0, 0]) == "highest"  # no images
    assert setting_within(IMAGES.to("meta")) == "highest"  # not on the CPU
    torch.set_float32_matmul_precision("high")
    assert setting_within(IMAGES) == "high"
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("amd")
def test_newer_settings_are_left_alone() -> None:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch has no fp32_precision")
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with products.fast_products(IMAGES):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_results_do_not_change_but_by_float32_s_rounding(compiled: bool) -> None:
    """On this CPU, whichever way its products go: against float64, as near as without."""
    torch.manual_seed(0)
    batch = Episode(*(Examples(torch.rand(4, 5, 1, 28, 28), torch.arange(5).expand(4, 5), 5) for _ in range(2)))
    exact = Episode(*(Examples(part.x.double(), part.y, part.ways) for part in batch))
    network = Conv4(1, 64, 5, 28, "stride", implementation="fast")

    def method(dtype: torch.dtype) -> MAML:
        own = Conv4(1, 64, 5, 28, "stride", implementation="fast").to(dtype)
        own.load_state_dict(network.state_dict())
        return MAML(own, Classification(), 0.01, 1, "sum_over_shots", False)

    wanted = MetaGradient(method(torch.float64))(exact)
    found = MetaGradient(method(torch.float32), compiled=compiled)(batch)
    for name, value in wanted.gradient.items():
        assert torch.dist(found.gradient[name].double(), value) <= 1e-4 * value.norm() + 1e-6, name
    torch.testing.assert_close(found.loss.double(), wanted.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(evaluate(method(torch.float32), batch, 1), evaluate(method(torch.float64), exact, 1).float())
