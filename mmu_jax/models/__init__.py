"""The networks, one file a family; ``Model`` binds one to a checkpoint's config. To add a family, add a row to ``MODELS``."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmu_jax import InputError
from mmu_jax.models import decoder, llava, qwen2_vl
from mmu_jax.models.family import Family
from mmu_jax.models.layers import Config, Dtype

# By the ``model_type`` of config.json.
MODELS: dict[str, Family] = {
    "llava": llava.FAMILY,
    "qwen2_vl": qwen2_vl.FAMILY,
    "qwen2_5_vl": qwen2_vl.FAMILY_2_5,
}


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, so that jit can take it as static
class Model:
    """A network bound to its config: what every other module needs of it.

    Attributes:
      config: the ``transformers`` config of the checkpoint.
      dtype: what activations are computed in.
    """

    config: Config
    dtype: Dtype = jnp.float32

    @property
    def family(self) -> Family:
        kind = self.config.model_type
        if kind not in MODELS:
            raise InputError(f"expected a model_type in {sorted(MODELS)}, found {kind!r}; this model is not supported")
        return MODELS[kind]

    @property
    def network(self) -> nn.Module:
        return self.family.network(self.config, self.dtype)

    def images(self, batch: dict) -> dict | None:
        """The arrays of a batch (``mmu_jax.data``) by which its images are seen; None if it has none."""
        found = {name: batch[name] for name in self.family.arrays if name in batch}
        if "photo" in batch and "photo" not in found:
            found = {name: x[batch["photo"]] for name, x in found.items()}
        return found or None

    def forward(self, params: dict, batch: dict) -> jax.Array:
        """Logits ``[B,T,V]`` of a batch, or of its tokens ``at [B,A]`` where it says which are read (``data.branches``).

        A batch without images never runs the vision tower.
        """
        mask, at = decoder.causal(batch["valid"], batch.get("branch")), batch.get("at")
        return self.step(params, batch["tokens"], batch["positions"], mask, self.images(batch), at=at)[0]

    def states(self, params: dict, batch: dict, layer: int | float) -> jax.Array:
        """What decoder layer ``layer`` (``decoder.layer_at``) says of a batch, ``[B,T,D]``, before any final norm; no layer above it runs.

        Of all but the last layer these are the ``hidden_states[layer + 1]`` of ``transformers``.
        """
        return self.states_of(params, batch, (layer,))[0]

    def states_of(self, params: dict, batch: dict, layers: Sequence[int | float]) -> list[jax.Array]:
        """:meth:`states` of every one of ``layers``, in their order, by one pass up to the highest."""
        wanted = [decoder.layer_at(self.config.text_config, layer) + 1 for layer in layers]
        mask, below, said = decoder.causal(batch["valid"], batch.get("branch")), 0, {}
        x = self.network.apply({"params": params}, batch["tokens"], self.images(batch), method="embed")
        for depth in sorted(set(wanted)):
            part, seen = decoder.cut(params, below, depth), (x, batch["positions"], mask, depth - below)
            said[depth] = x = self.network.apply({"params": part}, *seen, method="onward")
            below = depth
        return [said[depth] for depth in wanted]

    def features(self, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        """What every row's images are to the language model, ``[B,N,D]``, and which of the N there are, ``[B,N]`` bool.

        After the projector (LLaVA) or merger (Qwen2-VL); neither runs the language model.

        Raises:
          InputError: a batch without images.
        """
        if (images := self.images(batch)) is None:
            raise InputError(
                "expected a batch with images for visual features, found one of text; choose another stream"
            )
        found = self.network.apply({"params": params}, images, method="features")
        found = found[images["photo"]] if "photo" in images else found
        shown = (batch["tokens"] == self.config.image_token_id).sum(axis=1, keepdims=True)
        return found, jnp.arange(found.shape[1]) < shown

    def step(self, params, tokens, positions, mask, images=None, cache=None, offset=0, at=None):
        """Logits ``[B,T,V]`` and the cache with T new entries written at slot ``offset``.

        ``mask`` is an ``attention.AttentionMask``; where the cache holds keys already that are to be looked at, a dense one ``[B,1,T,S]``
        over its S slots. With ``at [B,A]``, only the logits ``[B,A,V]`` of those tokens of each row: a prompt needs its last alone.
        """
        return self.network.apply({"params": params}, tokens, positions, mask, images, cache, offset, at)

    def make_cache(self, rows: int, length: int) -> decoder.Cache:
        return decoder.make_cache(self.config.text_config, rows, length, self.dtype)

    def _init(self, key: jax.Array) -> dict:
        tokens = jnp.zeros((1, 4), jnp.int32)
        mask = decoder.causal(jnp.ones((1, 4), bool))
        return self.network.init(key, tokens, tokens, mask, self.family.images(self.config))["params"]

    def init(self, seed: int) -> dict:
        """Random params; for training from nothing only."""
        return jax.jit(self._init)(jax.random.key(seed))

    def abstract(self) -> dict:
        """The parameter tree as ``jax.ShapeDtypeStruct``; no memory is used."""
        return jax.tree.map(lambda x: x, self._shapes)  # the caller's own

    @functools.cached_property
    def _shapes(self) -> dict:
        return jax.eval_shape(self._init, jax.random.key(0))
