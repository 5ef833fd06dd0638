"""Layers whose parameters are named and shaped as in the Hugging Face checkpoint.

Axis letters: B rows, T queries, S keys, N patches, D width, F hidden width, K key-value heads, G queries per key-value
head, H head size, L layers, V vocabulary. ``Linear`` holds ``weight (out, in)``. Parameters are float32; ``dtype`` is
what they are computed in.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmu_jax import InputError
from mmu_jax.rowwise import contract

# Only networks trained from nothing see these: width-scaled weights, without which a small tower takes twice the steps.
normal = nn.initializers.normal(0.02)
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=-1, out_axis=-2)
Dtype = DTypeLike


class Config(Protocol):
    """A config of ``transformers``, or a part of one: what it holds is read by name."""

    def __getattr__(self, name: str) -> Any: ...


class Linear(nn.Module):
    """``y = x W^T + b``: ``x [..., in] -> [..., out]``, ``weight [out, in]``, as it is or adapted (``mmu_jax.lora``).

    ``bias_gradient=False``: the bias is read and written as any other, and its gradient is exactly zero. For a bias of which no output
    of the model depends, whose gradient would be rounding.
    """

    features: int
    bias: bool = True
    dtype: Dtype = jnp.float32
    bias_gradient: bool = True

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", fan_in, (self.features, x.shape[-1]))
        x = x.astype(self.dtype)
        y = contract(weight, x, self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
            y = y + (bias if self.bias_gradient else jax.lax.stop_gradient(bias))
        return y


class Kernel(nn.Module):
    """The bare ``weight`` of a convolution whose stride is its size: the caller cuts the patches."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        return self.param("weight", normal, self.shape)


class Embed(nn.Module):
    """``ids [...] -> [..., D]``, ``weight [V, D]``."""

    size: int
    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids):
        weight = self.param("weight", normal, (self.size, self.features))
        return jnp.take(weight, ids, axis=0).astype(self.dtype)


class LayerNorm(nn.Module):
    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
        return (x * weight + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
        return (x * weight).astype(self.dtype)


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    return x * jax.nn.sigmoid(1.702 * x)


def silu(x):
    # As a matrix: XLA's CPU is slow to transpose its gradient in three axes, as that of a weight needs it.
    return jax.nn.silu(x.reshape(-1, x.shape[-1])).reshape(x.shape)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable:
    if name not in ACTIVATIONS:
        raise InputError(
            f"expected an activation in {sorted(ACTIVATIONS)}, found {name!r}; this model is not supported"
        )
    return ACTIVATIONS[name]


def turns(angle):
    """Cosine and sine of ``angle [B,T,H/2]``, for all heads and, made before them, for all layers: ``[B,T,1,H/2]`` each."""
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotary(x, turn):
    """Rotates halves of the head by the :func:`turns` of an angle: ``x [B,T,K,H]`` (RoPE, arXiv 2104.09864)."""
    cos, sin = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def scanned(block: type[nn.Module], length: int, *, broadcast: int) -> type[nn.Module]:
    """``block`` repeated ``length`` times with params stacked on axis 0, rematerialised in the backward pass.

    The block maps ``(x, per layer, *broadcast inputs) -> (x, per layer)``: what belongs to a layer has the
    layer on axis 0; ``x`` may be a tree, and None stays None.
    """
    return nn.scan(
        nn.remat(block, prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0,) + (nn.broadcast,) * broadcast,
        length=length,
    )
