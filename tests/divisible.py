"""Models whose rows, heads and widths eight devices can share."""

import jax.numpy as jnp
import numpy as np

from mmu_jax import memory

# Widths, heads and images that eight devices can share, and rows by no number that a weight has.
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 8}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
SHAPE = memory.Shape(rows=8, tokens=40, images=2, patches=80)
FAMILIES = ("llava", "qwen2_vl")


def config(family):
    import transformers

    if family == "llava":
        vision = transformers.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=8,
            image_size=32,
            patch_size=8,
        )
        return transformers.LlavaConfig(
            vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_id=5
        )
    vision = {"depth": 3, "num_heads": 8, "patch_size": 4, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=TEXT | ROPE, image_token_id=5)


def padded(rows, tokens, left=False):
    """``valid [rows, tokens]``, each row two tokens shorter than the one before, and the last of eight nothing but padding."""
    ends = tokens - 2 * np.arange(rows)[:, None]
    ends[7:] = 0
    valid = np.arange(tokens) < ends
    return jnp.asarray(valid[:, ::-1] if left else valid)
