"""Law 7: the published sizes by shapes alone, and where every leaf goes on a pod.

``python tests/test_sizes.py`` writes the golden tables again.
"""

import pathlib

import jax
import numpy as np
import pytest
import transformers

from mmu_jax import models, sharding, trees

GOLDEN = pathlib.Path(__file__).parent / "golden"


def llava(width, hidden, layers, heads):
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


def qwen(width, hidden, layers, heads, groups, vocabulary, tie):
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
PUBLISHED = {
    "llava-1.5-7b": (lambda: llava(4096, 11008, 32, 32), 7_063_427_072),
    "llava-1.5-13b": (lambda: llava(5120, 13824, 40, 40), 13_351_494_656),
    "qwen2-vl-2b": (lambda: qwen(1536, 8960, 28, 12, 2, 151_936, True), 2_208_985_600),
    "qwen2-vl-7b": (lambda: qwen(3584, 18944, 28, 28, 4, 152_064, False), 8_291_375_616),
    "qwen2-vl-72b": (lambda: qwen(8192, 29568, 80, 64, 8, 152_064, False), 73_405_560_320),
}


def table(name):
    """One line a leaf: name, shape, PartitionSpec on 8 x 4 devices; then what the forward pass never reads."""
    model = models.Model(PUBLISHED[name][0]())
    mesh = jax.sharding.AbstractMesh((8, 4), ("data", "model"))
    placed = trees.flatten(sharding.shardings(model.abstract(), model.module.RULES, mesh))
    lines = []
    for leaf, shape in trees.flatten(model.abstract()).items():
        spec = ", ".join(axis or "-" for axis in placed[leaf].spec)
        lines.append(f"{leaf:66s} {'x'.join(map(str, shape.shape)):18s} {spec}".rstrip())
    lines += [f"unread {key}" for key in model.module.unread(model.config)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameter_count_is_the_published_one_and_every_leaf_has_a_rule(name):
    config, published = PUBLISHED[name]
    model = models.Model(config())
    unread = sum(int(np.prod(shape)) for shape in model.module.unread(model.config).values())
    assert trees.size(model.abstract()) + unread == published
    assert sharding.unmatched(model.abstract(), model.module.RULES) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_leaves_are_sharded_as_the_golden_table_says(name):
    assert table(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_next_to_nothing_is_replicated(name):
    """Fewer than 1 % of the bytes lie on every one of 8 x 4 devices."""
    model = models.Model(PUBLISHED[name][0]())
    mesh = jax.sharding.AbstractMesh((8, 4), ("data", "model"))
    placed = trees.flatten(sharding.shardings(model.abstract(), model.module.RULES, mesh))
    whole = [leaf for name, leaf in trees.flatten(model.abstract()).items() if placed[name].is_fully_replicated]
    assert trees.nbytes(whole) < 0.01 * trees.nbytes(model.abstract())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in PUBLISHED:
        (GOLDEN / f"{name}.txt").write_text(table(name))
