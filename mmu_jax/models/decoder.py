"""The Llama and Qwen2 decoder (arXiv 2302.13971, 2407.10671; GQA, arXiv 2305.13245): any head size, cache or none."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError
from mmu_jax.models.attention import AttentionMask, attention, for_layers
from mmu_jax.models.layers import Config, Dtype, Embed, Linear, RMSNorm, activation, rotary, scanned, turns
from mmu_jax.rowwise import linear
from mmu_jax.sharding import constrain

Cache = dict[str, jax.Array]
SECTIONS = [16, 24, 24]  # of M-RoPE where a config has none


def inverse_frequencies(config: Config) -> np.ndarray:
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


def head_size(config: Config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def make_cache(config: Config, rows: int, length: int, dtype: Dtype) -> Cache:
    """Zeroed keys and values, ``[L, B, S, K, H]`` each."""
    shape = (config.num_hidden_layers, rows, length, config.num_key_value_heads, head_size(config))
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


def angles(config: Config, positions: jax.Array) -> jax.Array:
    """Angles ``[B,T,H/2]`` of RoPE for ``positions [B,T]``, of M-RoPE (arXiv 2409.12191) for ``positions [B,3,T]``.

    M-RoPE deals the frequencies out to time, height and width in runs of ``mrope_section``.
    """
    inv_freq = jnp.asarray(inverse_frequencies(config))
    if positions.ndim == 3:
        sections = config.rope_parameters.get("mrope_section", SECTIONS)
        axis = np.repeat(np.arange(len(sections)) % 3, sections)
        positions = positions[:, axis].swapaxes(1, 2)
    else:
        positions = positions[:, :, None]
    return positions.astype(jnp.float32) * inv_freq


BIASED = (
    "qwen2",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
)  # text models whose q, k and v have a bias, whatever the config says


def biases(config: Config) -> tuple[bool, bool]:
    """Whether q, k, v have a bias, and whether o has."""
    if config.model_type in BIASED:
        return True, False
    both = config.model_type == "llama" and config.attention_bias
    return both, both


def causal(valid: jax.Array, branch: jax.Array | None = None) -> AttentionMask:
    """Of ``valid [B,T]``: a token looks at itself and at the valid tokens before it.

    With ``branch [B,T]``, at those of its own branch and of 0, which is everybody's.
    """
    seen = AttentionMask(valid=valid.astype(bool))
    if branch is None:
        return seen
    shared = (branch == 0)[:, None, :] | (branch[:, :, None] == branch[:, None, :])
    return AttentionMask(dense=seen.whole() & shared[:, None])


class Attention(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x, cache, layer, turn, mask, offset):
        c, (b, t, d), h = self.config, x.shape, head_size(self.config)
        qkv_bias, out_bias = biases(c)

        def project(name, heads):
            return Linear(heads * h, qkv_bias, self.dtype, name=name)(x).reshape(b, t, heads, h)

        q = rotary(project("q_proj", c.num_attention_heads), turn)
        k = rotary(project("k_proj", c.num_key_value_heads), turn)
        v = project("v_proj", c.num_key_value_heads)
        if cache is not None:
            new, place = {"k": k, "v": v}, (layer, 0, offset, 0, 0)
            cache = {n: jax.lax.dynamic_update_slice(x, new[n].astype(x.dtype)[None], place) for n, x in cache.items()}
            if mask.dense is not None:  # else the new keys are all there are
                k, v = (jax.lax.dynamic_index_in_dim(cache[n], layer, keepdims=False) for n in "kv")
        out = attention(q, k, v, mask).reshape(b, t, c.num_attention_heads * h)
        return Linear(d, out_bias, self.dtype, name="o_proj")(out), cache


class MLP(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c = self.config
        bias = c.model_type == "llama" and c.mlp_bias
        gate = activation(c.hidden_act)(Linear(c.intermediate_size, bias, self.dtype, name="gate_proj")(x))
        up = Linear(c.intermediate_size, bias, self.dtype, name="up_proj")(x)
        return Linear(x.shape[-1], bias, self.dtype, name="down_proj")(gate * up)


class Layer(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, carry, layer, turn, mask, offset):
        (x, cache), eps = carry, self.config.rms_norm_eps
        x = constrain(x, "data")
        normed = RMSNorm(eps, self.dtype, name="input_layernorm")(x)
        out, cache = Attention(self.config, self.dtype, name="self_attn")(normed, cache, layer, turn, mask, offset)
        x = x + out
        normed = RMSNorm(eps, self.dtype, name="post_attention_layernorm")(x)
        return (x + MLP(self.config, self.dtype, name="mlp")(normed), cache), None


class Decoder(nn.Module):
    """Embedded tokens ``[B,T,D]`` -> final hidden states ``[B,T,D]`` and the cache.

    With a cache, the T new keys are written to its slots from ``offset`` on; a dense ``mask [B,1,T,S]`` looks at all S of them, any
    other at the new ones alone. With a ``depth``, the params hold so many layers alone (:func:`cut`), and what the last of them says
    is returned as it is, before the final norm.
    """

    config: Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, positions, mask, cache=None, offset=0, depth=None):
        c, angle, number = self.config, angles(self.config, positions), depth or self.config.num_hidden_layers
        layers = scanned(Layer, number, broadcast=3)(c, self.dtype, name="layers")
        keys = (len(x), c.num_key_value_heads, head_size(c))
        mask, order = for_layers(mask, *keys, self.dtype, cached=cache is not None)
        if order is not None:
            x, angle = (jnp.take_along_axis(each, order[..., None], axis=1) for each in (x, angle))
        # The cache of all layers is carried, so that a token is written into its place and no layer's is copied into another.
        (x, cache), _ = layers((x, cache), jnp.arange(number), turns(angle), mask, offset)
        if order is not None:
            x = jnp.take_along_axis(x, jnp.argsort(order, axis=1)[..., None], axis=1)
        return x if depth else RMSNorm(c.rms_norm_eps, self.dtype, name="norm")(x), cache


class LanguageModel(nn.Module):
    """The decoder between its token embedding and, for tied heads, the same embedding transposed."""

    config: Config
    dtype: Dtype

    def setup(self):
        c = self.config
        self.embed_tokens = Embed(c.vocab_size, c.hidden_size, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        nn.share_scope(self, self.decoder)

    def embed(self, tokens):
        return self.embed_tokens(tokens)

    def __call__(self, x, positions, mask, cache=None, offset=0, depth=None):
        return self.decoder(x, positions, mask, cache, offset, depth)

    def attend(self, x):
        """Logits by the transposed embedding, for tied heads."""
        weight = self.embed_tokens.variables["params"]["weight"]
        return linear(weight, x, self.dtype)


class Seeing(nn.Module):
    """A decoder that is shown images: what networks have in common.

    ``setup`` of each makes ``language_model`` and, unless it is tied, ``lm_head``; its ``features(images)`` are ``[M,N,D]``, what images
    are to the language model. Logits ``[B,T,V]``, or ``[B,A,V]`` of the tokens ``at [B,A]`` of each row, and the cache.
    """

    config: Config
    dtype: Dtype = jnp.float32

    def embed(self, tokens, images):
        x = self.language_model.embed(tokens)
        if images is not None:
            x = place(self.features(images), tokens == self.config.image_token_id, x, images.get("photo"))
        return constrain(x, "data")

    def onward(self, x, positions, mask, depth):
        """``[B,T,D]``, what the last of ``depth`` layers makes of what was said below them (:func:`cut`)."""
        return self.language_model(x, positions, mask, depth=depth)[0]

    def __call__(self, tokens, positions, mask, images=None, cache=None, offset=0, at=None):
        x, cache = self.language_model(self.embed(tokens, images), positions, mask, cache, offset)
        x = x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)
        logits = self.language_model.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return constrain(logits, "data", None, "model"), cache


def layer_at(config: Config, layer: int | float) -> int:
    """The index of a decoder layer: of an int as in a list, of a float as far between the first, 0.0, and the last, 1.0.

    >>> from types import SimpleNamespace as Config
    >>> [layer_at(Config(num_hidden_layers=32), layer) for layer in (7, 0.225, -1, 1.0)]
    [7, 7, 31, 31]

    Raises:
      InputError: there is no such layer.
    """
    number = config.num_hidden_layers
    if isinstance(layer, float) and 0 <= layer <= 1:
        return round(layer * (number - 1))
    if isinstance(layer, float) or not -number <= layer < number:
        raise InputError(
            f"expected a layer from {-number} to {number - 1}, or from 0.0, the first, to 1.0, the last, found {layer}; correct it"
        )
    return layer % number


def cut(params: dict, below: int, depth: int) -> dict:
    """``params`` with the layers ``below`` to ``depth`` of the decoder alone, as they are or adapted (``mmu_jax.lora``)."""
    language = params["language_model"]
    layers = jax.tree.map(lambda x: x[below:depth], language["layers"])
    return params | {"language_model": language | {"layers": layers}}


def place(features: jax.Array, is_image: jax.Array, x: jax.Array, photo: jax.Array | None = None) -> jax.Array:
    """``x [B,T,D]`` with the i-th image position of a row replaced by its i-th feature of ``features [B,N,D]``.

    Where rows share photos, their features are ``[M,N,D]``, and ``photo [B]`` says which a row has.
    """
    features = features if photo is None else features[photo]
    index = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
    return jnp.where(is_image[..., None], jnp.take_along_axis(features, index[..., None], axis=1), x)
