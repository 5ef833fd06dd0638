"""Configs of the published models, by name: for plans and tests that need their shapes and not their weights."""

from collections.abc import Callable
from typing import Any

import transformers


def _llava(width, hidden, layers, heads):
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = transformers.LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=32000)


def _qwen(width, hidden, layers, heads, groups, vocabulary, tie):
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    return transformers.Qwen2VLConfig(vision_config={"hidden_size": width}, text_config=text, tie_word_embeddings=tie)


# Name -> config and the parameters that the files on the hub hold.
PUBLISHED: dict[str, tuple[Callable[[], Any], int]] = {
    "llava-1.5-7b": (lambda: _llava(4096, 11008, 32, 32), 7_063_427_072),
    "llava-1.5-13b": (lambda: _llava(5120, 13824, 40, 40), 13_351_494_656),
    "qwen2-vl-2b": (lambda: _qwen(1536, 8960, 28, 12, 2, 151_936, True), 2_208_985_600),
    "qwen2-vl-7b": (lambda: _qwen(3584, 18944, 28, 28, 4, 152_064, False), 8_291_375_616),
    "qwen2-vl-72b": (lambda: _qwen(8192, 29568, 80, 64, 8, 152_064, False), 73_405_560_320),
}
