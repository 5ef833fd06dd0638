"""The config of a checkpoint directory, and whether our networks compute what it means to ``transformers``.

Many decoders and towers fit by name and shape and compute something else: what is not known to be right is refused.
"""

import pathlib
from typing import Any

from mmu_jax import InputError
from mmu_jax.files import read_object
from mmu_jax.models import MODELS, decoder
from mmu_jax.models.layers import ACTIVATIONS, Config
from mmu_jax.models.reading import Translated

# rope_type -> the positive numbers that it needs.
ROPES = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
SIZES += ("patch_size", "image_size", "temporal_patch_size", "spatial_merge_size", "window_size", "embed_dim")
SIZES += ("out_hidden_size", "mlp_ratio")
DEPTHS = ("num_hidden_layers", "depth")
LARGEST, DEEPEST = 2**24, 2**12


def read(path: str | pathlib.Path) -> Config:
    """The ``transformers`` config of a checkpoint directory; no code of the directory is ever run.

    Raises:
      InputError: there is none, it is damaged, or it describes a model that our networks are not.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.exists():
        raise InputError(
            f"expected a checkpoint directory with config.json, found none in {path}; give the folder of a whole one"
        )
    raw = read_object(file, "the config of a model")
    if raw.get("model_type") not in list(MODELS):
        raise InputError(
            f"expected a model_type in {sorted(MODELS)}, found {raw.get('model_type')!r} in {file}; this model is not "
            "supported"
        )
    from transformers import AutoConfig

    with Translated(f"the config of a {raw['model_type']} in {file}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if found := unknown(config):
        raise InputError(
            f"expected a {config.model_type} whose arithmetic is known, found {'; '.join(found)} in {file}; this model is not "
            "supported"
        )
    return config


def unknown(config: Config) -> list[str]:
    """What in a config our networks do not compute, as ``'text_config.hidden_act=relu2'``; all of it."""
    found = [f"{key}={getattr(config, key)!r:.60}" for key in ("quantization_config", "transformers_weights")
             if getattr(config, key, None)]  # fmt: skip
    family, parts = (
        MODELS[config.model_type],
        {"text_config": config.text_config, "vision_config": config.vision_config},
    )
    allowed = {"text_config": family.texts, "vision_config": family.towers}
    for name, part in parts.items():
        if part.model_type not in allowed[name]:
            found.append(f"{name}.model_type={part.model_type} (known: {', '.join(allowed[name])})")
    if found:
        return found
    for name, part in parts.items():
        for key in SIZES + DEPTHS:
            value, most = getattr(part, key, 1), DEEPEST if key in DEPTHS else LARGEST
            if not (isinstance(value, int) and 1 <= value <= most or key == "head_dim" and value is None):
                found.append(f"{name}.{key}={value!r}")
        for key in ("rms_norm_eps", "layer_norm_eps"):
            if not _positive(value := getattr(part, key, 1e-6)) or value >= 1:
                found.append(f"{name}.{key}={value!r}")
        if part.hidden_act not in ACTIVATIONS:
            found.append(f"{name}.hidden_act={part.hidden_act} (known: {', '.join(sorted(ACTIVATIONS))})")
    if found:
        return found
    found = [f"text_config.{fault}" for fault in _text(config.text_config)]
    if not isinstance(config.image_token_id, int) or not 0 <= config.image_token_id < config.text_config.vocab_size:
        found.append(f"image_token_id={config.image_token_id!r} of vocab_size={config.text_config.vocab_size}")
    return found + family.unknown(config)


def _text(c: Config) -> list[str]:
    heads, groups, rope = c.num_attention_heads, c.num_key_value_heads, c.rope_parameters or {}
    head, found = decoder.head_size(c), []
    if c.hidden_size % heads or heads % groups or head % 2:
        found.append(f"num_attention_heads={heads} of {head} with num_key_value_heads={groups}")
    if rope.get("rope_type") not in list(ROPES):
        found.append(f"rope_parameters.rope_type={rope.get('rope_type')} (known: {', '.join(ROPES)})")
    else:
        numbers = {key: rope.get(key) for key in ROPES[rope["rope_type"]]}
        found += [f"rope_parameters.{k}={v!r}" for k, v in numbers.items() if not _positive(v)]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(f"rope_parameters.partial_rotary_factor={rope['partial_rotary_factor']}")
    if any(kind != "full_attention" for kind in getattr(c, "layer_types", None) or ()):
        found.append(f"layer_types with sliding_attention (use_sliding_window, sliding_window={c.sliding_window})")
    elif c.model_type == "mistral" and c.sliding_window is not None:
        found.append(f"sliding_window={c.sliding_window}")
    if c.model_type.endswith("_text"):
        sections = rope.get("mrope_section", decoder.SECTIONS)
        if head != c.hidden_size // heads:
            found.append(f"head_dim={head} with hidden_size={c.hidden_size} and num_attention_heads={heads}")
        if not isinstance(sections, list) or len(sections) != 3 or sum(map(_count, sections)) != head // 2:
            found.append(f"rope_parameters.mrope_section={sections} for heads of {head}")
    return found


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _count(value: Any) -> int:
    """A section of M-RoPE, or what no sum of sections reaches."""
    return value if isinstance(value, int) and value >= 0 else LARGEST
