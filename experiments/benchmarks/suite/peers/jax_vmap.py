"""JAX: `jit(value_and_grad(mean of vmap))` with optax's Adam in the same program; on the CPU only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import torch
from torch import Tensor

from mamllit.core.episode import Episode
from suite.peers import Unsupported
from suite.problems import Problem, network

NHWC = ("NHWC", "OIHW", "NHWC")
Params = dict[str, jax.Array]
Arrays = tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # an episode: support and query, x and y of each


def forward(row: Problem, params: Params, x: jax.Array) -> jax.Array:
    """The same networks; images channels-last, which XLA prefers on a CPU."""
    if row.channels == 0:
        for depth in range(3):
            x = x @ params[f"layers.{depth}.weight"].T + params[f"layers.{depth}.bias"]
            x = jax.nn.relu(x) if depth < 2 else x
        return x
    strided = row.downsample == "stride"
    x = x.transpose(0, 2, 3, 1)
    for block in range(4):
        weight, strides = params[f"convs.{block}.weight"], (2, 2) if strided else (1, 1)
        x = jax.lax.conv_general_dilated(x, weight, strides, "SAME", dimension_numbers=NHWC) + params[f"convs.{block}.bias"]
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-3) + params[f"norms.{block}.beta"])
        if not strided:
            # not a `max` over reshaped axes: its second derivative comes out wrong under jit of vmap (jax 0.7.1, CPU, 50% off)
            rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
            halved = jnp.maximum(x[:, 0:rows:2], x[:, 1:rows:2])
            x = jnp.maximum(halved[:, :, 0:columns:2], halved[:, :, 1:columns:2])
    x = x.mean((1, 2)) if strided else x.reshape(len(x), -1)
    return x @ params["head.weight"].T + params["head.bias"]


def task_loss(row: Problem, params: Params, episode: Arrays) -> jax.Array:
    """The query loss of one task after the inner loop."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        output = forward(row, params, x)
        if row.channels == 0:
            return ((output - y) ** 2).sum() / row.shots
        return -jnp.take_along_axis(jax.nn.log_softmax(output), y[:, None], 1).sum() / row.shots

    support, query = episode
    for _ in range(row.inner_steps):
        gradient = jax.grad(loss)(params, *support)
        if row.first_order:
            gradient = jax.lax.stop_gradient(gradient)
        params = jax.tree.map(lambda p, g: p - row.inner_lr * g, params, gradient)
    return loss(params, *query)


class Jax:
    """`batched` maps a function of one episode over a batch: `jax.vmap`, or `jax.lax.map` for one task after the other."""

    def __init__(self, row: Problem, dtype: torch.dtype, device: str, batched: Callable) -> None:
        if device != "cpu":
            raise Unsupported("JAX is the anchor on the CPU; here it runs there only")
        jax.config.update("jax_enable_x64", dtype == torch.float64)
        self.params = {name: jnp.asarray(value.numpy()) for name, value in network(row).to(dtype).state_dict().items()}
        adam = optax.adam(1e-3)
        self.state = adam.init(self.params)

        def mean_loss(params: Params, episodes: Arrays) -> jax.Array:
            return batched(lambda episode: task_loss(row, params, episode))(episodes).mean()

        def step(params: Params, state: optax.OptState, episodes: Arrays) -> tuple[Params, optax.OptState]:
            updates, state = adam.update(jax.grad(mean_loss)(params, episodes), state)
            return optax.apply_updates(params, updates), state

        self._gradient, self._step = jax.jit(jax.grad(mean_loss)), jax.jit(step, donate_argnums=(0, 1))

    def prepare(self, episodes: Episode) -> Arrays:
        support, query = ((jnp.asarray(part.x.numpy()), jnp.asarray(part.y.numpy())) for part in episodes)
        return support, query

    def gradient(self, batch: Episode) -> dict[str, Tensor]:
        return {name: torch.tensor(jax.device_get(value)) for name, value in self._gradient(self.params, batch).items()}

    def step(self, batch: Episode) -> None:
        self.params, self.state = self._step(self.params, self.state, batch)
        jax.block_until_ready(self.params)


def build(row: Problem, dtype: torch.dtype, device: str) -> Jax:
    return Jax(row, dtype, device, jax.vmap)
