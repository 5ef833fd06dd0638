"""Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923): a vision tower for any image size, a Qwen2 decoder.

Parameter tree (Hugging Face names; blocks and layers stacked on axis 0)::

    visual/{patch_embed/proj, blocks, merger/{ln_q, mlp/0, mlp/2}}
    language_model/{embed_tokens, layers, norm}
    lm_head                                                   absent when tied to embed_tokens

All geometry comes from the host as arrays, so images of different sizes, and several in a row, share one compilation
(axis letters: N patches of a row, in the processor's order, four neighbours after one another)::

    patches  [B,N,C*P*P*2]   padded with zeros
    grid     [B,N,2]         row and column of each patch in its image
    segment  [B,N]           which image of the row a patch belongs to; -1 for padding
"""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from mmu_jax.data import Processor
from mmu_jax.models import decoder
from mmu_jax.models.attention import AttentionMask, attention
from mmu_jax.models.family import Family
from mmu_jax.models.layers import (
    Config,
    Dtype,
    Kernel,
    LayerNorm,
    Linear,
    RMSNorm,
    activation,
    gelu,
    rotary,
    scanned,
    turns,
)
from mmu_jax.models.reading import PlainProcessor, Translated, default_template, options
from mmu_jax.rowwise import contract
from mmu_jax.sharding import constrain

IMAGES = ("patches", "grid", "segment")

# From any spelling on disk (hub files, transformers 5 in memory) to the names of this tree.
HF_NAMES = [
    (r"^model\.(visual|language_model)\.", r"\1."),
    (r"^model\.", "language_model."),
]
HUB_NAMES = [(r"^language_model\.", "model.")]
MODULE_NAMES = [(r"^(?!lm_head)", "model.")]  # to those in the class of `transformers`

# Axis 0 of a leaf under `blocks` or `layers` is the layer. `model` splits heads and hidden width, `data` the other axis.
RULES = [
    (r"(blocks|layers)/.*(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1|qkv)/weight$", P(None, "model", "data")),
    (r"(blocks|layers)/.*(o_proj|down_proj|fc2|proj)/weight$", P(None, "data", "model")),
    (r"(blocks|layers)/.*(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1|qkv)/bias$", P(None, "model")),
    (r"(blocks|layers)/.*", P()),
    (r"(embed_tokens|lm_head)/weight$", P("model", "data")),
    (r"merger/mlp/0/weight$", P("model", "data")),
    (r"merger/mlp/2/weight$", P("data", "model")),
    (r"merger/mlp/0/bias$", P("model")),
    (r"patch_embed/proj/weight$", P("data")),
    (r"norm/|ln_q/|merger/mlp/2/bias$", P()),
]

# The linear layers, the leaves that saliency scores unless told otherwise.
ELIGIBLE = r".*(proj|fc1|fc2|qkv|mlp/0|mlp/2)/weight"
SIDES = {"vision": r"visual/.*", "language": r"(language_model|lm_head)/.*"}


def _second(config: Config) -> bool:
    """Whether the vision tower is the one of Qwen2.5: RMSNorm, gated MLP, windows."""
    return hasattr(config, "fullatt_block_indexes")


def _widths(config: Config) -> tuple[int, int]:
    """Width of the vision tower and of what it gives to the language model."""
    return (config.hidden_size, config.out_hidden_size) if _second(config) else (config.embed_dim, config.hidden_size)


def _norm(config: Config, dtype: Dtype, name: str) -> nn.Module:
    return (RMSNorm if _second(config) else LayerNorm)(1e-6, dtype, name=name)


class Attention(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x, turn, segment):
        (b, n, d), heads = x.shape, self.config.num_heads
        qkv = Linear(3 * d, dtype=self.dtype, name="qkv")(x).reshape(b, n, 3, heads, d // heads)
        q, k, v = rotary(qkv[:, :, 0], turn), rotary(qkv[:, :, 1], turn), qkv[:, :, 2]
        out = attention(q, k, v, AttentionMask(segment=segment))
        return Linear(d, dtype=self.dtype, name="proj")(out.reshape(b, n, d))


class MLP(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c, act = self.config, activation(self.config.hidden_act)
        if _second(c):
            gate, up = (Linear(c.intermediate_size, dtype=self.dtype, name=f"{p}_proj")(x) for p in ("gate", "up"))
            return Linear(x.shape[-1], dtype=self.dtype, name="down_proj")(act(gate) * up)
        hidden = act(Linear(int(x.shape[-1] * c.mlp_ratio), dtype=self.dtype, name="fc1")(x))
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class Block(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x, everywhere, turn, image, window):
        c, segment = self.config, jnp.where(everywhere, image, window)
        x = constrain(x, "data")
        x = x + Attention(c, self.dtype, name="attn")(_norm(c, self.dtype, "norm1")(x), turn, segment)
        return x + MLP(c, self.dtype, name="mlp")(_norm(c, self.dtype, "norm2")(x)), None


class PatchEmbed(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, patches):
        c, width = self.config, _widths(self.config)[0]
        shape = (width, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        return contract(Kernel(shape, name="proj")(), patches.astype(self.dtype), self.dtype)


class Merger(nn.Module):
    """Every square of neighbours becomes one feature: ``[B,N,D] -> [B,N/4,W]``."""

    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c = self.config
        x = _norm(c, self.dtype, "ln_q")(x)
        x = x.reshape(len(x), -1, x.shape[-1] * c.spatial_merge_size**2)
        return MergerMLP(_widths(c)[1], self.dtype, name="mlp")(x)


class MergerMLP(nn.Module):
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        x = gelu(Linear(x.shape[-1], dtype=self.dtype, name="0")(x))
        return Linear(self.features, dtype=self.dtype, name="2")(x)


class Tower(nn.Module):
    """``patches, grid, segment`` -> one feature ``[B,N/4,W]`` for every image token, in the order of the tokens."""

    config: Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, patches, grid, segment):
        c = self.config
        quarter = _widths(c)[0] // c.num_heads // 4
        inv_freq = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) / quarter)
        angle = (grid[..., None].astype(jnp.float32) * inv_freq).reshape(*segment.shape, 2 * quarter)
        window, everywhere = segment, np.ones(c.depth, bool)
        if _second(c):
            window, everywhere = _windows(c, grid, segment), np.isin(np.arange(c.depth), c.fullatt_block_indexes)
        blocks = scanned(Block, c.depth, broadcast=3)(c, self.dtype, name="blocks")
        x = PatchEmbed(c, self.dtype, name="patch_embed")(patches)
        x, _ = blocks(x, jnp.asarray(everywhere), turns(angle), segment, window)
        return Merger(c, self.dtype, name="merger")(x)


def _windows(config: Config, grid: jax.Array, segment: jax.Array) -> jax.Array:
    """``[B,N]``: a number for every window of every image of a row (Qwen2.5-VL looks outside of it in a few blocks alone)."""
    merge = config.spatial_merge_size
    side = config.window_size // merge // config.patch_size * merge
    most = segment.shape[1] // side + 1  # windows along an edge of an image that has N patches or fewer
    return (segment * most + grid[..., 0] // side) * most + grid[..., 1] // side


class Network(decoder.Seeing):
    """Logits ``[B,T,V]``, or ``[B,A,V]`` of the tokens ``at [B,A]`` of each row, and the cache. ``positions`` is ``[B,3,T]`` (M-RoPE) or, for text, ``[B,T]``."""

    def setup(self):
        c = self.config
        self.visual = Tower(c.vision_config, self.dtype)
        self.language_model = decoder.LanguageModel(c.text_config, self.dtype)
        if not c.tie_word_embeddings:
            self.lm_head = Linear(c.text_config.vocab_size, bias=False, dtype=self.dtype)

    def features(self, images):
        """``[M,N/4,D]``, as the language model receives them."""
        return self.visual(*(images[name] for name in IMAGES))


def images(config: Config) -> dict[str, jax.Array]:
    """The smallest image arrays of a batch of one row."""
    c = config.vision_config
    n = c.spatial_merge_size**2
    width = c.in_channels * c.temporal_patch_size * c.patch_size**2
    zeros = jnp.zeros((1, n), jnp.int32)
    return {"patches": jnp.zeros((1, n, width)), "grid": jnp.zeros((1, n, 2), jnp.int32), "segment": zeros}


def tower(config: Config) -> tuple[int, int, int, int]:
    """Patches of an image (0: as many as it has), width, layers and heads of the vision tower."""
    c = config.vision_config
    return 0, _widths(c)[0], c.depth, c.num_heads


def unread(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint is read."""
    return {}


def unknown(config: Config) -> list[str]:
    """What in a config, beside the text model, is not computed here."""
    c, found = config.vision_config, []
    windows = _second(c)
    width, out = (c.hidden_size, c.out_hidden_size) if windows else (c.embed_dim, c.hidden_size)
    if c.in_channels != 3:
        found.append(f"vision_config.in_channels={c.in_channels}")
    if width % (4 * c.num_heads):
        found.append(f"vision_config of width {width} with num_heads={c.num_heads}")
    if out != config.text_config.hidden_size:
        found.append(
            f"vision_config that gives width {out} to text_config.hidden_size={config.text_config.hidden_size}"
        )
    rope = {"rope_type": "axial", "rope_theta": 10000.0} | (c.rope_parameters or {})
    if rope["rope_type"] != "axial" or rope["rope_theta"] != 10000.0:
        found.append(f"vision_config.rope_parameters={c.rope_parameters}")
    if windows and not all(isinstance(i, int) for i in c.fullatt_block_indexes):
        found.append(f"vision_config.fullatt_block_indexes={c.fullatt_block_indexes}")
    if windows and c.window_size < c.patch_size * c.spatial_merge_size:
        found.append(f"vision_config.window_size={c.window_size} with patch_size={c.patch_size}")
    return found


def processor(path: pathlib.Path, config: Config) -> Processor:
    """Tokenizer, template and image processor in a checkpoint directory; the processor of ``transformers`` needs torchvision."""
    del config
    from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

    with Translated(f"tokenizer and image processor in {path}"):
        tokenizer = AutoTokenizer.from_pretrained(**options(path))
        images = AutoImageProcessor.from_pretrained(**options(path), backend="pil")
        own = ProcessorMixin.get_processor_dict(str(path))[0].get("chat_template")
    tokenizer.chat_template = default_template(own or tokenizer.chat_template, path)
    return PlainProcessor(tokenizer, images, getattr(tokenizer, "image_token", "<|image_pad|>"))


def agreements(processor: Processor, config: Config) -> list[tuple]:
    """(key of the processor, its value, key of the config, its value): what must be equal."""
    c, images = config.vision_config, processor.image_processor
    pairs = (("patch_size",) * 2, ("temporal_patch_size",) * 2, ("merge_size", "spatial_merge_size"))
    return [(a, getattr(images, a, None), f"vision_config.{b}", getattr(c, b)) for a, b in pairs]


FAMILY = Family(
    network=Network,
    arrays=(*IMAGES, "photo"),
    images=images,
    tower=tower,
    unread=unread,
    names=HF_NAMES,
    hub_names=HUB_NAMES,
    module_names=MODULE_NAMES,
    rules=RULES,
    eligible=ELIGIBLE,
    sides=SIDES,
    texts=("qwen2_vl_text",),
    towers=("qwen2_vl_vision",),
    unknown=unknown,
    processor=processor,
    agreements=agreements,
)
FAMILY_2_5 = dataclasses.replace(FAMILY, texts=("qwen2_5_vl_text",), towers=("qwen2_5_vl_vision",))
