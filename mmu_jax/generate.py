"""Decoding: batched, with a key-value cache, jitted once per bucket of prompt length."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, memory, models, sharding, trees
from mmu_jax.data import Processor
from mmu_jax.models.attention import AttentionMask
from mmu_jax.models.decoder import causal
from mmu_jax.sharding import constrain
from mmu_jax.trees import Params


def _sample(logits, key, temperature, top_p):
    """One token per row: the argmax at temperature 0, else nucleus sampling (Holtzman et al., arXiv 1904.09751)."""
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / temperature
    order = jnp.sort(logits, axis=-1)[:, ::-1]
    mass = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1)
    last = jnp.sum(mass < top_p, axis=-1, keepdims=True)  # the smallest set whose mass reaches top_p
    floor = jnp.take_along_axis(order, last, axis=-1)
    return jax.random.categorical(key, jnp.where(logits < floor, -jnp.inf, logits)).astype(jnp.int32)


@partial(jax.jit, static_argnames=("model", "new_tokens", "stop", "temperature", "top_p"))
def _decode(model, params, batch, key, *, new_tokens, stop, temperature, top_p):
    b, t = batch["tokens"].shape
    # Rows and heads of the cache lie where those of the keys and values are computed.
    cache = {k: constrain(x, None, "data", None, "model") for k, x in model.make_cache(b, t + new_tokens).items()}
    keys = jnp.pad(batch["valid"].astype(bool), ((0, 0), (0, new_tokens)))
    positions = batch["positions"]
    # The last valid token of a row predicts its first new one, wherever the padding is.
    last = jnp.max(jnp.where(batch["valid"], jnp.arange(t), 0), axis=1)
    images = model.images(batch)
    prompt = causal(batch["valid"])
    logits, cache = model.step(params, batch["tokens"], positions, prompt, images, cache, jnp.int32(0), last[:, None])
    first = logits[:, 0]
    # Text goes on after the largest position of its row on any axis of M-RoPE.
    axes = tuple(range(1, positions.ndim))
    valid = jnp.expand_dims(batch["valid"], axes[:-1])
    position = jnp.max(jnp.where(valid, positions, 0), axis=axes, keepdims=True) + 1
    position = jnp.broadcast_to(position, (*positions.shape[:-1], 1))
    pad = jnp.int32(stop[0])

    def draw(logits, key):
        finite = jnp.isfinite(logits).all(axis=-1)
        return jnp.where(finite, _sample(logits, key, temperature, top_p), -1)

    def body(state):
        i, token, done, out, keys, position, cache, key = state
        key, use = jax.random.split(key)
        out = out.at[:, i].set(jnp.where(done, pad, token))
        done = done | jnp.isin(token, jnp.asarray(stop, jnp.int32)) | (token < 0)
        keys = keys.at[:, t + i].set(True)
        mask = AttentionMask(dense=keys[:, None, None, :])
        logits, cache = model.step(params, token[:, None], position, mask, None, cache, t + i)
        return i + 1, draw(logits[:, 0], use), done, out, keys, position + 1, cache, key

    def unfinished(state):
        return (state[0] < new_tokens) & ~jnp.all(state[2])

    key, use = jax.random.split(key)
    token = draw(first, use)
    out = jnp.full((b, new_tokens), pad)
    # Rows that only fill the batch have no prompt: they are done before they start.
    state = (jnp.int32(0), token, ~batch["valid"].any(axis=1), out, keys, position, cache, key)
    return jax.lax.while_loop(unfinished, body, state)[3]


def generate(
    model: models.Model,
    params: Any,
    batch: dict[str, Any],
    *,
    new_tokens: int,
    stop: tuple[int, ...],
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> jax.Array:
    """Continues prompts: ``tokens, valid, positions`` (and images) of a batch -> new tokens ``[B, new_tokens]``.

    Padding may be on either side. A row ends at its first ``stop`` token, after which it holds ``stop[0]``; the loop
    ends when all rows have. One compilation per (B, T, new_tokens). Where the logits of a row are not finite there is no
    token to take: the row holds -1 there and ends.

    Args:
      stop: end-of-turn token ids, at least one.
      temperature: 0 is greedy; otherwise tokens are drawn from the ``top_p`` nucleus with ``seed``.
    """
    inputs = {
        name: batch[name] for name in ("tokens", "valid", "positions", "photo", *model.family.arrays) if name in batch
    }
    options = {"new_tokens": new_tokens, "stop": tuple(stop), "temperature": temperature, "top_p": top_p}
    return _decode(model, params, inputs, jax.random.key(seed), **options)


def for_decoding(model: models.Model, params: Params, mesh: jax.sharding.Mesh) -> Params:
    """The params as they are best held while words are asked for (``memory.Ledger.decoding``): as they are, or a copy."""
    fits = memory.Ledger(model, mesh, jax.tree.leaves(params)[0].dtype).decoding() > 0
    if not sharding.agreed(fits):
        return params
    where = sharding.shardings(params, sharding.whole_along_data(model.family.rules), mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)
    return _gather_program(model.dtype, sharding.places(like))(params)


@functools.lru_cache(4)
def _gather_program(dtype, where):
    def leaf(name, x):
        small = x.ndim - trees.stacked(name) < 2  # norms and biases, which act as they are
        return x if small else x.astype(dtype)

    return jax.jit(lambda params: trees.map_named(leaf, params), out_shardings=jax.tree.unflatten(*where))


def texts(processor: Processor, tokens: jax.Array, stop: tuple[int, ...]) -> list[str]:
    """New tokens ``[B,N]`` -> the answers, cut at the end of turn and stripped.

    Raises:
      InputError: a row in which the logits were not finite.
    """
    rows, tokens = [], np.asarray(tokens)
    if (broken := np.flatnonzero((tokens < 0).any(axis=1))).size:
        raise InputError(
            f"expected finite logits, found NaN or infinity in row {broken[0]}; look for it in the weights"
        )
    for row in tokens:
        ends = np.flatnonzero(np.isin(row, stop))
        rows.append(row[: ends[0]] if len(ends) else row)
    return [text.strip() for text in processor.tokenizer.batch_decode(rows, skip_special_tokens=True)]
