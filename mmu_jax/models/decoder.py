"""The Llama decoder (arXiv 2302.13971; GQA, arXiv 2305.13245): any head size, with or without biases, cache or none."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError
from mmu_jax.models.layers import Linear, RMSNorm, activation, attention, rotary, scanned
from mmu_jax.sharding import constrain

Cache = dict[str, jax.Array]


def inverse_frequencies(config: Any) -> np.ndarray:
    """RoPE frequencies ``[H/2]``; ``rope_type`` default, linear or llama3."""
    rope = dict(config.rope_parameters)
    head = head_size(config)
    inv = 1.0 / rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float32) / head)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return inv
    if kind == "linear":
        return inv / rope["factor"]
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * inv / (2 * np.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - smooth) * inv / rope["factor"] + smooth * inv
    raise InputError(f"expected rope_type default, linear or llama3, found {kind!r}; this model is not supported")


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def make_cache(config: Any, rows: int, length: int, dtype: Any) -> Cache:
    """Zeroed keys and values, ``[L, B, S, K, H]`` each."""
    shape = (config.num_hidden_layers, rows, length, config.num_key_value_heads, head_size(config))
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


class Attention(nn.Module):
    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, cache, positions, mask, offset):
        c, (b, t, d), h = self.config, x.shape, head_size(self.config)
        bias = getattr(c, "attention_bias", False)

        def project(name, heads):
            return Linear(heads * h, bias, self.dtype, name=name)(x).reshape(b, t, heads, h)

        inv_freq = jnp.asarray(inverse_frequencies(c))
        q = rotary(project("q_proj", c.num_attention_heads), positions, inv_freq)
        k = rotary(project("k_proj", c.num_key_value_heads), positions, inv_freq)
        v = project("v_proj", c.num_key_value_heads)
        if cache is not None:
            cache = {
                "k": jax.lax.dynamic_update_slice(cache["k"], k.astype(cache["k"].dtype), (0, offset, 0, 0)),
                "v": jax.lax.dynamic_update_slice(cache["v"], v.astype(cache["v"].dtype), (0, offset, 0, 0)),
            }
            k, v = cache["k"], cache["v"]
        out = attention(q, k, v, mask).reshape(b, t, c.num_attention_heads * h)
        return Linear(d, bias, self.dtype, name="o_proj")(out), cache


class MLP(nn.Module):
    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, bias = self.config, getattr(self.config, "mlp_bias", False)
        gate = activation(c.hidden_act)(Linear(c.intermediate_size, bias, self.dtype, name="gate_proj")(x))
        up = Linear(c.intermediate_size, bias, self.dtype, name="up_proj")(x)
        return Linear(x.shape[-1], bias, self.dtype, name="down_proj")(gate * up)


class Layer(nn.Module):
    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, cache, positions, mask, offset):
        eps = self.config.rms_norm_eps
        x = constrain(x, "data")
        normed = RMSNorm(eps, self.dtype, name="input_layernorm")(x)
        out, cache = Attention(self.config, self.dtype, name="self_attn")(normed, cache, positions, mask, offset)
        x = x + out
        normed = RMSNorm(eps, self.dtype, name="post_attention_layernorm")(x)
        return x + MLP(self.config, self.dtype, name="mlp")(normed), cache


class Decoder(nn.Module):
    """Embedded tokens ``[B,T,D]`` -> final hidden states ``[B,T,D]`` and the cache.

    ``mask [B,1,T,S]``: which keys a query may look at; with a cache, S is its length and ``offset`` the slot where the
    T new keys are written.
    """

    config: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, positions, mask, cache=None, offset=0):
        layers = scanned(Layer, self.config.num_hidden_layers, broadcast=3)(self.config, self.dtype, name="layers")
        x, cache = layers(x, cache, positions, mask, offset)
        return RMSNorm(self.config.rms_norm_eps, self.dtype, name="norm")(x), cache
