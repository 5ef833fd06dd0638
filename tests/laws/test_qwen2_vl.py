"""Law 1 for Qwen2-VL and Qwen2.5-VL, whose positions and image tokens torch works out by itself."""

import jax
import numpy as np
import pytest

from mmu_jax import generate, hf, models, trees
from twins import QWEN_ROWS, gradient_errors, mean_loss, photo, qwen_batch, qwen_logits_differ, torch_qwen


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", QWEN_ROWS)
def test_logits_equal_torch(qwen, name, side):
    folder, reference, model = qwen
    batch, inputs = qwen_batch(folder, QWEN_ROWS[name], side)
    assert (~batch["valid"]).any()
    assert qwen_logits_differ(reference, model, hf.load(folder, model), batch, inputs) < 1e-5


SHAPES = {
    "tied": {"tie": True},
    "gqa1": {"text": {"num_key_value_heads": 4, "mrope": [1, 1, 2]}},
    "gqa4": {"text": {"num_key_value_heads": 1, "mrope": [2, 1, 1]}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_equal_torch_for_other_shapes(tmp_path, name):
    reference = torch_qwen(tmp_path, **SHAPES[name])
    model = models.Model(hf.read_config(tmp_path))
    batch, inputs = qwen_batch(tmp_path, QWEN_ROWS["rows of other sizes"])
    params = hf.load(tmp_path, model)
    assert qwen_logits_differ(reference, model, params, batch, inputs) < 1e-5
    errors = gradient_errors(reference, model, params, batch, inputs)
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", QWEN_ROWS)
def test_gradients_equal_torch_leaf_by_leaf(qwen, name, side):
    folder, reference, model = qwen
    batch, inputs = qwen_batch(folder, QWEN_ROWS[name], side)
    errors = gradient_errors(reference, model, hf.load(folder, model), batch, inputs)
    assert max(errors.values()) < 1e-4, errors


def test_images_of_any_size_share_one_compilation(qwen):
    folder, _, model = qwen
    params, forward = hf.load(folder, model), jax.jit(model.forward)
    for rows in ([[photo(24, 24)], [photo(32, 16)]], [[photo(16, 40)], [photo(32, 24)]]):
        forward(params, qwen_batch(folder, rows)[0])
    assert forward._cache_size() == 1


def test_greedy_tokens_equal_transformers(qwen):
    import torch

    folder, reference, model = qwen
    for name in ("two sizes in a row", "text"):
        batch, inputs = qwen_batch(folder, QWEN_ROWS[name], "left")
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        ours = generate.generate(model, hf.load(folder, model), batch, new_tokens=9, stop=(95_000,))
        np.testing.assert_array_equal(np.asarray(ours), theirs[:, batch["tokens"].shape[1] :].numpy())


def test_the_processor_s_own_batch_is_ours(qwen):
    """Text, expanded placeholders and patches against the image processor and tokenizer used by hand."""
    folder, _, _ = qwen
    processor = hf.read_processor(folder)
    row = QWEN_ROWS["two sizes in a row"][0]
    batch, _ = qwen_batch(folder, [row])
    out = processor.image_processor(row, return_tensors="np")
    np.testing.assert_array_equal(batch["patches"][0][batch["segment"][0] >= 0], out["pixel_values"])
    counts = [int(h * w) // 4 for _, h, w in out["image_grid_thw"]]
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["tokens"] == image).sum() == sum(counts)
    assert [int((batch["segment"][0] == i).sum()) for i in range(2)] == [4 * n for n in counts]


def test_padding_patches_change_nothing(qwen):
    folder, _, model = qwen
    params = hf.load(folder, model)
    batch, _ = qwen_batch(folder, QWEN_ROWS["one image"])
    other = {k: v.copy() for k, v in batch.items()}
    other["patches"][other["segment"] < 0] = 7.0
    np.testing.assert_array_equal(model.forward(params, batch), model.forward(params, other))


def test_text_only_batches_do_not_touch_the_vision_tower(qwen):
    folder, _, model = qwen
    grads = jax.grad(mean_loss(model))(hf.load(folder, model), qwen_batch(folder, QWEN_ROWS["text"])[0])
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads["visual"]))
    assert any(np.asarray(g).any() for g in jax.tree.leaves(grads["language_model"]))


def test_every_leaf_has_a_rule_and_every_linear_weight_is_eligible(qwen):
    import re

    from mmu_jax import sharding

    model = qwen[2]
    abstract = model.abstract()
    assert sharding.unmatched(abstract, model.family.rules) == []
    linear = {name for name in trees.flatten(abstract) if re.fullmatch(model.family.eligible, name)}
    rest = {name for name in trees.flatten(abstract) if name.endswith("weight")} - linear
    assert all(re.search("norm|ln_q|embed_tokens|lm_head", name) for name in rest), rest
