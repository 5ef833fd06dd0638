"""LLaVA-1.5 (arXiv 2310.03744): CLIP tower, two-layer projector, Llama decoder.

Parameter tree (Hugging Face names; decoder and encoder layers stacked on axis 0 under ``layers``)::

    vision_tower/{embeddings, pre_layrnorm, encoder/layers}   up to the layer that is read
    multi_modal_projector/{linear_1, linear_2}
    language_model/{embed_tokens, layers, norm}
    lm_head                                                   absent when tied to embed_tokens
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmu_jax import InputError
from mmu_jax.data import Processor
from mmu_jax.models import clip, decoder
from mmu_jax.models.family import Family
from mmu_jax.models.layers import ACTIVATIONS, Config, Dtype, Linear, activation
from mmu_jax.models.reading import Translated, default_template, options

IMAGES = ("pixels",)

# From any spelling on disk (hub files, transformers 5 files, transformers 5 in memory) to the names of this tree.
HF_NAMES = [
    (r"^model\.(vision_tower|multi_modal_projector|language_model)\.", r"\1."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "language_model."),
]

# From the names of this tree to the spelling of the files on the hub, for checkpoints made from nothing.
HUB_NAMES = [
    (r"^vision_tower\.", "vision_tower.vision_model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^language_model\.(?!lm_head)", "language_model.model."),
]

# To those in the class of `transformers` (5.6 and later: before, the tower's had `vision_model.` in them).
MODULE_NAMES = [(r"^(?!lm_head)", "model.")]

# Axis 0 of a leaf under `layers` is the layer. `model` splits heads and hidden width, `data` the other axis (FSDP).
RULES = [
    (r"layers/.*(q|k|v|gate|up)_proj/weight$", P(None, "model", "data")),
    (r"layers/.*(o|out|down)_proj/weight$", P(None, "data", "model")),
    (r"layers/.*fc1/weight$", P(None, "model", "data")),
    (r"layers/.*fc2/weight$", P(None, "data", "model")),
    (r"layers/.*(q|k|v)_proj/bias$|layers/.*fc1/bias$", P(None, "model")),
    (r"layers/.*", P()),
    (r"(embed_tokens|lm_head)/weight$", P("model", "data")),
    (r"linear_1/weight$", P("model", "data")),
    (r"linear_2/weight$", P("data", "model")),
    (r"linear_1/bias$", P("model")),
    (r"patch_embedding/weight$", P("data")),
    (r"norm/|layrnorm/|linear_2/bias$|class_embedding$|position_embedding/", P()),
]

# The linear layers, the leaves that saliency scores unless told otherwise.
ELIGIBLE = r".*(proj|fc1|fc2|linear_1|linear_2)/weight"
SIDES = {"vision": r"(vision_tower|multi_modal_projector)/.*", "language": r"(language_model|lm_head)/.*"}


class Projector(nn.Module):
    config: Config
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c, width = self.config, self.config.text_config.hidden_size
        x = Linear(width, c.multimodal_projector_bias, self.dtype, name="linear_1")(x)
        x = activation(c.projector_hidden_act)(x)
        return Linear(width, c.multimodal_projector_bias, self.dtype, name="linear_2")(x)


class Network(decoder.Seeing):
    """Logits ``[B,T,V]``, or ``[B,A,V]`` of the tokens ``at [B,A]`` of each row, and the cache. ``config`` is a ``transformers.LlavaConfig``; ``images`` holds ``pixels [B,I,C,h,w]``.

    Rows without an image may share a batch with rows that have one: their pixels are not looked at.
    """

    def setup(self):
        c = self.config
        self.vision_tower = clip.Tower(c.vision_config, depth(c), self.dtype)
        self.multi_modal_projector = Projector(c, self.dtype)
        self.language_model = decoder.LanguageModel(c.text_config, self.dtype)
        if not c.tie_word_embeddings:
            self.lm_head = Linear(c.text_config.vocab_size, bias=False, dtype=self.dtype)

    def features(self, images):
        """``[M,N,D]``, as the language model receives them."""
        pixels = images["pixels"]
        features = self.vision_tower(pixels.reshape(-1, *pixels.shape[2:]))
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        return self.multi_modal_projector(features).reshape(len(pixels), -1, self.config.text_config.hidden_size)


def images(config: Config) -> dict[str, jax.Array]:
    """The smallest image arrays of a batch of one row."""
    c = config.vision_config
    return {"pixels": jnp.zeros((1, 1, c.num_channels, c.image_size, c.image_size))}


def tower(config: Config) -> tuple[int, int, int, int]:
    """Patches of an image (CLS included), width, layers and heads of the vision tower."""
    c = config.vision_config
    return (c.image_size // c.patch_size) ** 2 + 1, c.hidden_size, depth(config), c.num_attention_heads


def depth(config: Config) -> int:
    """How many CLIP layers are read: ``vision_feature_layer`` -2 of 24 layers is 23."""
    layer = config.vision_feature_layer
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer


def unread(config: Config) -> dict[str, tuple[int, ...]]:
    """Tensors of the checkpoint that the forward pass never reads (CLIP above :func:`depth`), by dotted tree name."""
    c = config.vision_config
    d, f = c.hidden_size, c.intermediate_size
    one = {
        f"self_attn.{p}_proj.{k}": s for p in ("q", "k", "v", "out") for k, s in (("weight", (d, d)), ("bias", (d,)))
    }
    one |= {f"layer_norm{i}.{k}": (d,) for i in (1, 2) for k in ("weight", "bias")}
    one |= {"mlp.fc1.weight": (f, d), "mlp.fc1.bias": (f,), "mlp.fc2.weight": (d, f), "mlp.fc2.bias": (d,)}
    shapes = {
        f"vision_tower.encoder.layers.{i}.{name}": shape
        for i in range(depth(config), c.num_hidden_layers)
        for name, shape in one.items()
    }
    return shapes | {f"vision_tower.post_layernorm.{k}": (d,) for k in ("weight", "bias")}


def unknown(config: Config) -> list[str]:
    """What in a config, beside the text model, is not computed here."""
    c, layer, found = config.vision_config, config.vision_feature_layer, []
    if not isinstance(layer, int) or not -c.num_hidden_layers <= layer + 1 <= c.num_hidden_layers + 1:
        found.append(f"vision_feature_layer={layer} of {c.num_hidden_layers} layers")
    if c.image_size % c.patch_size:
        found.append(f"vision_config.image_size={c.image_size} in patches of patch_size={c.patch_size}")
    if c.num_channels != 3:
        found.append(f"vision_config.num_channels={c.num_channels}")
    if c.hidden_size % c.num_attention_heads:
        found.append(f"vision_config.hidden_size={c.hidden_size} with num_attention_heads={c.num_attention_heads}")
    if config.projector_hidden_act not in ACTIVATIONS:
        found.append(f"projector_hidden_act={config.projector_hidden_act}")
    return found


def processor(path: pathlib.Path, config: Config) -> Processor:
    """The processor in a checkpoint directory, its missing numbers filled in from the config."""
    from transformers import AutoProcessor

    with Translated(f"tokenizer and processor in {path}"):
        found = AutoProcessor.from_pretrained(**options(path), backend="pil")
    for part in ("tokenizer", "image_processor"):
        if getattr(found, part, None) is None:
            raise InputError(
                f"expected a processor with tokenizer and image processor in {path}, found a {type(found).__name__}; copy "
                "processor_config.json and preprocessor_config.json there"
            )
    strategy = found.vision_feature_select_strategy
    # Older files leave it to the config how many tokens an image becomes.
    if found.patch_size is None or strategy is None:
        found.patch_size = found.patch_size or config.vision_config.patch_size
        found.vision_feature_select_strategy = strategy or config.vision_feature_select_strategy
        found.num_additional_image_tokens = 1  # CLIP's class token
    found.chat_template = default_template(found.chat_template or found.tokenizer.chat_template, path)
    return found


def agreements(processor: Processor, config: Config) -> list[tuple]:
    """(key of the processor, its value, key of the config, its value): what must be equal."""
    c, images = config.vision_config, processor.image_processor
    side, strategy = c.image_size, "vision_feature_select_strategy"
    box = images.crop_size if images.do_center_crop else images.size
    made = tuple((box or {}).get(edge) for edge in ("height", "width"))
    return [
        ("patch_size", processor.patch_size, "vision_config.patch_size", c.patch_size),
        (strategy, processor.vision_feature_select_strategy, strategy, config.vision_feature_select_strategy),
        ("num_additional_image_tokens", processor.num_additional_image_tokens, "the class tokens of vision_config", 1),
        ("crop_size (or size)", made, "vision_config.image_size", (side, side)),
    ]


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
    texts=("llama", "mistral", "qwen2"),
    towers=("clip_vision_model",),
    unknown=unknown,
    processor=processor,
    agreements=agreements,
)
