"""The meta-gradient over a batch of episodes: all ways to run it agree, compiled or not; and evaluation."""

import logging
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import count, take
from mamllit.engine.compiling import should_compile
from mamllit.engine.meta_gradient import MetaGradient, chunk_size
from mamllit.engine.recording import recorded
from mamllit.methods import ANIL, MAML
from mamllit.objectives import Classification, Regression

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
COMPILERS = ("g++", "c++", "clang++", "cl")


def one(episodes: Episode, i: int) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def sine_method(dtype: torch.dtype = torch.float64) -> MAML:
    return MAML(MLP(1, [16, 16], 1).to(dtype), Regression(), 0.01, 2, "sum_over_shots")


# ---- the meta-gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("execution", ["loop", 1, 2, 3, 7, 100])
def test_chunks_and_loop_equal_vmap_on_sine(execution: Any, dtype: torch.dtype, sine_episodes: Callable[..., Episode]) -> None:
    """7 episodes: chunks of 2 and 3 leave a last one of 1."""
    method, episodes = sine_method(dtype), sine_episodes(7, dtype=dtype)
    step = MetaGradient(method, execution)(episodes)
    expected = MetaGradient(method, "vmap")(episodes)
    torch.testing.assert_close(step._asdict(), expected._asdict(), **TOLERANCE[dtype])
    assert step.loss.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("execution", ["loop", 2])
def test_chunks_and_loop_equal_vmap_on_conv4(
    execution: Any, dtype: torch.dtype, image_episodes: Callable[..., Episode]
) -> None:
    method = MAML(Conv4(1, 4, 3, 8, "stride").to(dtype), Classification(), 0.1, 1, "sum_over_shots")
    episodes = image_episodes(3, dtype=dtype)
    step = MetaGradient(method, execution)(episodes)
    torch.testing.assert_close(step._asdict(), MetaGradient(method, "vmap")(episodes)._asdict(), **TOLERANCE[dtype])


@pytest.mark.parametrize("execution", ["vmap", "loop", 2])
def test_equals_plain_autograd_of_the_mean_meta_loss(execution: Any, sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = sine_method(), sine_episodes(5)
    results = [method.meta_loss(one(episodes, i)) for i in range(5)]
    loss = torch.stack([value for value, _ in results]).mean()
    gradient = torch.autograd.grad(loss, list(method.parameters()))

    step = MetaGradient(method, execution)(episodes)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step.logs["mse"], torch.stack([logs["mse"] for _, logs in results]).mean())
    torch.testing.assert_close(list(step.gradient.values()), list(gradient), rtol=1e-9, atol=1e-12)


def test_the_gradient_names_are_the_trained_parameters_in_order(sine_episodes: Callable[..., Episode]) -> None:
    method = sine_method()
    method.backbone.layers[0].requires_grad_(False)
    meta_gradient = MetaGradient(method)
    step = meta_gradient(sine_episodes(2))
    trained = [name for name, value in method.named_parameters() if value.requires_grad]
    assert len(trained) == 4
    assert list(step.gradient) == meta_gradient.names() == [f"method.{name}" for name in trained]


def test_nothing_is_left_on_the_parameters(sine_episodes: Callable[..., Episode]) -> None:
    """The gradient is returned, not accumulated, and carries no graph."""
    method = sine_method()
    step = MetaGradient(method, 2)(sine_episodes(3))
    assert all(value.grad is None for value in method.parameters())
    assert not any(value.requires_grad for value in (step.loss, *step.logs.values(), *step.gradient.values()))


def test_take_and_count_cut_a_batch(sine_episodes: Callable[..., Episode]) -> None:
    episodes = sine_episodes(5)
    part = take(episodes, 3, 6)
    assert (count(episodes), count(part)) == (5, 2)
    assert torch.equal(part.support.y, episodes.support.y[3:])
    assert torch.equal(part.query.x, episodes.query.x[3:])


@pytest.mark.parametrize(
    ("tasks", "fitting", "size"), [(12, 12, 12), (12, 100, 12), (12, 5, 4), (12, 1, 1), (12, 0, 1), (7, 5, 1)]
)
def test_auto_on_a_cpu_takes_the_largest_equal_chunks_that_fit(
    tasks: int, fitting: int, size: int, monkeypatch: pytest.MonkeyPatch, sine_episodes: Callable[..., Episode]
) -> None:
    """An episode of 5 + 4 points has 9 input numbers."""
    monkeypatch.setattr("mamllit.engine.meta_gradient.CPU_CHUNK", 9 * fitting + 8)
    method, episodes = sine_method(), sine_episodes(tasks)
    assert chunk_size("auto", episodes) == size
    expected = MetaGradient(method, "vmap")(episodes)
    torch.testing.assert_close(MetaGradient(method, "auto")(episodes)._asdict(), expected._asdict(), **TOLERANCE[torch.float64])


def test_chunk_sizes_of_the_other_settings(sine_episodes: Callable[..., Episode]) -> None:
    episodes = sine_episodes(6)
    assert [chunk_size(execution, episodes) for execution in ("vmap", "loop", 4, 9)] == [6, 1, 4, 6]


def test_auto_on_an_accelerator_takes_all_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamllit.engine.meta_gradient.CPU_CHUNK", 1)
    part = Examples(torch.empty(6, 5, 1, device="meta"), torch.empty(6, 5, 1, device="meta"))
    assert chunk_size("auto", Episode(part, part)) == 6


@pytest.mark.parametrize("execution", ["chunk", 0, -2, 1.5])
def test_an_unknown_execution_is_refused(execution: Any) -> None:
    with pytest.raises(ValueError, match=rf"execution is {execution!r}; it must be 'auto', 'vmap', 'loop' or a"):
        MetaGradient(sine_method(), execution)


# ---- compiling -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on the CPU")
def test_the_compiled_step_equals_the_plain_one(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = sine_method(torch.float32), sine_episodes(3, dtype=torch.float32)
    compiled = MetaGradient(method, compiled=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        step = compiled(episodes)
    assert compiled.compiled
    torch.testing.assert_close(step._asdict(), MetaGradient(method)(episodes)._asdict(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # it must read the parameters anew in every step
        method.backbone.layers[0].weight.mul_(0.5)
    again = compiled(episodes)
    torch.testing.assert_close(again._asdict(), MetaGradient(method)(episodes)._asdict(), rtol=1e-5, atol=1e-5)
    assert again.loss != step.loss


@pytest.mark.parametrize(("text", "shown"), [("no compiler\nand a trace", "no compiler"), ("", "OSError")])
def test_a_failing_compiler_means_one_warning_and_the_plain_step(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch, sine_episodes: Callable[..., Episode]
) -> None:
    def fake_compile(function: Callable, **options: Any) -> Callable:
        def failing(*args: Any) -> None:
            raise OSError(text)

        return failing

    monkeypatch.setattr(torch, "compile", fake_compile)
    method, episodes = sine_method(), sine_episodes(3)
    meta_gradient = MetaGradient(method, execution=2, compiled=True)
    with pytest.warns(UserWarning, match=rf"torch\.compile failed, so .* runs uncompiled: {shown}$") as caught:
        step = meta_gradient(episodes)
    assert len(caught) == 1
    expected = MetaGradient(method, execution=2)(episodes)
    torch.testing.assert_close(step._asdict(), expected._asdict(), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta_gradient(episodes)


def test_an_error_of_the_method_itself_is_raised_as_it_is(
    monkeypatch: pytest.MonkeyPatch, sine_episodes: Callable[..., Episode]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    method = MAML(nn.Linear(2, 1).double(), Regression(), 0.01, 1, "mean")  # takes two inputs, the task has one
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the compiler is not to blame
        with pytest.raises(RuntimeError, match=r"shape|size"):
            MetaGradient(method, compiled=True)(sine_episodes(2))


def test_should_compile_does_as_told() -> None:
    cpu = torch.device("cpu")
    assert should_compile(True, 1, cpu) is True
    assert should_compile(False, 10**6, cpu) is False


def test_should_compile_auto_looks_at_the_length_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    cpu = torch.device("cpu")
    assert not should_compile("auto", 1999, cpu)
    assert should_compile("auto", 2000, cpu)
    assert should_compile("auto", 10, cpu, worth=10)
    assert not should_compile("auto", -1, cpu)  # a run without max_steps


def test_should_compile_auto_needs_a_compiler_on_the_cpu_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert not should_compile("auto", 2000, torch.device("cpu"))
    assert "compile: auto found no C++ compiler" in caplog.text
    assert should_compile("auto", 2000, torch.device("cuda"))


def test_on_a_cpu_large_meta_batches_are_recorded_and_small_ones_compiled(
    monkeypatch: pytest.MonkeyPatch, image_episodes: Callable[..., Episode], sine_episodes: Callable[..., Episode]
) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options["backend"]) or function)
    images, sine = Conv4(1, 4, 3, 28, "stride").double(), MLP(1, [4], 1).double()
    MetaGradient(ANIL(images, Classification(), 0.1, 1, "mean"), compiled=True)(image_episodes(2, side=28))
    MetaGradient(ANIL(sine, Regression(), 0.1, 1, "mean"), compiled=True)(sine_episodes(2))
    assert asked == [recorded, "inductor"]
    MetaGradient(ANIL(images, Classification(), 0.1, 1, "mean"))(image_episodes(2, side=28))
    assert len(asked) == 2
