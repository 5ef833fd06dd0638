"""The networks. Each module has ``forward``, ``step``, ``abstract``, ``unread``, ``HF_NAMES``, ``RULES``."""

import dataclasses
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError
from mmu_jax.models import decoder, llava

MODELS: dict[str, ModuleType] = {"llava": llava}


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, so that jit can take it as static
class Model:
    """A network bound to its config: what every other module needs of it.

    Attributes:
      config: the ``transformers`` config of the checkpoint.
      dtype: what activations are computed in.
    """

    config: Any
    dtype: Any = jnp.float32

    @property
    def module(self) -> ModuleType:
        kind = self.config.model_type
        if kind not in MODELS:
            raise InputError(f"expected a model_type in {sorted(MODELS)}, found {kind!r}; this model is not supported")
        return MODELS[kind]

    def forward(self, params: dict, batch: dict) -> jax.Array:
        """Logits ``[B,T,V]`` of a batch (``mmu_jax.data``)."""
        return self.module.forward(self.config, params, batch, dtype=self.dtype)

    def step(self, params, tokens, positions, mask, pixels, cache, offset):
        return self.module.step(self.config, params, tokens, positions, mask, pixels, cache, offset, dtype=self.dtype)

    def abstract(self) -> dict:
        """The parameter tree as shapes."""
        return self.module.abstract(self.config)

    def make_cache(self, rows: int, length: int):
        return decoder.make_cache(self.config.text_config, rows, length, self.dtype)


def init(model: Model, seed: int) -> dict:
    """Random params, jitted; for training from scratch only."""
    config = model.config
    size = config.vision_config.image_size
    pixels = jnp.zeros((1, 1, config.vision_config.num_channels, size, size))
    tokens = jnp.zeros((1, 4), jnp.int32)
    network = llava.Llava(config)
    make = jax.jit(partial(network.init, mask=llava.causal(jnp.ones((1, 4), bool)), pixels=pixels))
    return make(jax.random.key(seed), tokens, tokens)["params"]
