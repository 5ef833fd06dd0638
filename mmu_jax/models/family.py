"""What every other room needs of a family of models; each says it at the foot of its own file."""

import dataclasses
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax

from mmu_jax.data import Processor
from mmu_jax.models.layers import Config, Dtype
from mmu_jax.sharding import Rules

Names = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Family:
    """The networks of one ``model_type`` and how their checkpoints are read and written.

    Attributes:
      network: ``(config, dtype) -> `` a Flax Linen module, called as ``Model.step`` calls it, with methods ``embed``, ``onward`` and
        ``features`` as ``Model`` calls them; its decoder's layers are stacked under ``language_model/layers``.
      arrays: the arrays of a batch (``mmu_jax.data``) that only its vision tower reads. With ``photo`` among them the network sees a
        photo that rows share once, and gives each its features; without, each row comes with its own.
      images: ``config -> `` their smallest instance.
      tower: ``config -> `` patches of an image (0: as many as it has), width, layers and heads of the vision tower.
      unread: ``config -> `` shapes of the tensors on disk that the forward pass never reads, by dotted tree name.
      names: ``(pattern, replacement)`` from any spelling on disk to the names of the tree.
      hub_names: from the names of the tree to the spelling of the files on the hub.
      module_names: from the names of the tree to those in the family's class of ``transformers``.
      rules: how leaves are sharded (``mmu_jax.sharding``).
      eligible: pattern of the linear weights, the leaves that saliency scores unless told otherwise.
      sides: pattern of the leaves of the ``'vision'`` and of the ``'language'`` side.
      texts, towers: the ``model_type`` of the text and vision configs whose arithmetic is ours.
      unknown: ``config -> `` what in it, beside the text model, the network does not compute.
      processor: ``(folder, config) -> `` tokenizer, chat template and image processor.
      agreements: ``(processor, config) -> `` rows ``(its key, its value, key of the config, value)`` that must be equal.
    """

    network: Callable[[Config, Dtype], nn.Module]
    arrays: tuple[str, ...]
    images: Callable[[Config], dict[str, jax.Array]]
    tower: Callable[[Config], tuple[int, int, int, int]]
    unread: Callable[[Config], dict[str, tuple[int, ...]]]
    names: Names
    hub_names: Names
    module_names: Names
    rules: Rules
    eligible: str
    sides: dict[str, str]
    texts: tuple[str, ...]
    towers: tuple[str, ...]
    unknown: Callable[[Config], list[str]]
    processor: Callable[[pathlib.Path, Config], Processor]
    agreements: Callable[[Processor, Config], list[tuple]]
