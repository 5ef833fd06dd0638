"""The CLIP vision tower (arXiv 2103.00020) up to the layer that is read; what is above it does not exist here."""

import flax.linen as nn
import jax.numpy as jnp

from mmu_jax.models.attention import AttentionMask, attention
from mmu_jax.models.layers import (
    Config,
    Dtype,
    Embed,
    Kernel,
    LayerNorm,
    Linear,
    activation,
    normal,
    scanned,
)
from mmu_jax.rowwise import contract
from mmu_jax.sharding import constrain


class Attention(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c, (b, n, d) = self.config, x.shape
        heads = (b, n, c.num_attention_heads, d // c.num_attention_heads)
        # Without rotation the softmax of a query sees no shift of all keys. What differentiation finds for their bias is rounding: Adam
        # would make whole steps of it, other ones on another number of devices, and saliency a mask by chance.
        q, k, v = (
            Linear(d, dtype=self.dtype, bias_gradient=p != "k", name=f"{p}_proj")(x).reshape(heads) for p in "qkv"
        )
        out = attention(q, k, v, AttentionMask())
        return Linear(d, dtype=self.dtype, name="out_proj")(out.reshape(b, n, d))


class MLP(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        hidden = Linear(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(activation(self.config.hidden_act)(hidden))


class Layer(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x, _):
        eps = self.config.layer_norm_eps
        x = constrain(x, "data")
        x = x + Attention(self.config, self.dtype, name="self_attn")(LayerNorm(eps, self.dtype, name="layer_norm1")(x))
        x = x + MLP(self.config, self.dtype, name="mlp")(LayerNorm(eps, self.dtype, name="layer_norm2")(x))
        return x, None


class Embeddings(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels):
        c, (b, channels, h, w), p = self.config, pixels.shape, self.config.patch_size
        patches = pixels.reshape(b, channels, h // p, p, w // p, p).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(b, -1, channels * p * p).astype(self.dtype)
        x = contract(Kernel((c.hidden_size, channels, p, p), name="patch_embedding")(), patches, self.dtype)
        cls = self.param("class_embedding", normal, (c.hidden_size,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, c.hidden_size)), x], axis=1)
        return x + Embed(x.shape[1], c.hidden_size, self.dtype, name="position_embedding")(jnp.arange(x.shape[1]))


class Encoder(nn.Module):
    config: Config
    depth: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        return scanned(Layer, self.depth, broadcast=0)(self.config, self.dtype, name="layers")(x, None)[0]


class Tower(nn.Module):
    """``pixels [M, C, height, width] -> [M, 1 + N, D]``: the hidden states after ``depth`` layers, CLS first."""

    config: Config
    depth: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels):
        x = Embeddings(self.config, self.dtype, name="embeddings")(pixels)
        x = LayerNorm(self.config.layer_norm_eps, self.dtype, name="pre_layrnorm")(x)
        return Encoder(self.config, self.depth, self.dtype, name="encoder")(x) if self.depth else x
