"""Law 1 for Qwen2-VL and Qwen2.5-VL, whose positions and image tokens torch works out by itself."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import torch_qwen
from PIL import Image
from test_parity import gradient_errors, mean_loss

from mmu_jax import generate, hf, models, trees
from mmu_jax.data import loader, text, vision

SIZES = loader.Sizes((64, 96, 128), (64, 128, 256))


def photo(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


ROWS = {
    "text": [[], []],
    "one image": [[photo(24, 24)], [photo(24, 24, 1)]],
    "two sizes in a row": [[photo(24, 40), photo(40, 24, 1)], [photo(16, 16), photo(32, 16, 2)]],
    "rows of other sizes": [[photo(32, 32)], [photo(16, 48, 1)], [photo(48, 24, 2)]],
}
PAIRS = [("Who is this?", "Ada Becker"), ("Where was Ada Becker born, if anyone knows?", "Lima"), ("Job?", "Baker")]


def make(folder, rows, side="right"):
    """The batch of ours, and what torch takes for the same rows: it finds positions itself."""
    import torch

    processor = hf.read_processor(folder)
    seen = [vision.pictures(processor, row) if row else [] for row in rows]
    encoded = dataclasses.replace(text.encode(processor, PAIRS[: len(rows)], len(rows[0])), side=side)
    batch = SIZES.batch(encoded, range(len(rows)), seen)
    inputs = {
        "input_ids": torch.tensor(batch["tokens"], dtype=torch.long),
        "attention_mask": torch.tensor(batch["valid"], dtype=torch.long),
    }
    if any(seen):
        flat = [picture for row in seen for picture in row]
        inputs["pixel_values"] = torch.tensor(np.concatenate([p.array for p in flat]))
        inputs["image_grid_thw"] = torch.tensor([[1, *p.grid] for p in flat])
        inputs["mm_token_type_ids"] = torch.tensor(batch["tokens"] == encoded.image, dtype=torch.int)
    return batch, inputs


def logits_differ(reference, model, params, batch, inputs):
    import torch

    with torch.no_grad():
        theirs = reference(**inputs).logits.float().numpy()
    ours = np.asarray(jax.jit(model.forward)(params, batch))
    return np.abs(ours - theirs)[batch["valid"]].max() / max(np.abs(theirs).max(), 1.0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ROWS)
def test_logits_equal_torch(qwen, name, side):
    folder, reference, model = qwen
    batch, inputs = make(folder, ROWS[name], side)
    assert (~batch["valid"]).any()
    assert logits_differ(reference, model, hf.load(folder, model), batch, inputs) < 1e-5


SHAPES = {
    "tied": {"tie": True},
    "gqa1": {"text": {"num_key_value_heads": 4, "mrope": [1, 1, 2]}},
    "gqa4": {"text": {"num_key_value_heads": 1, "mrope": [2, 1, 1]}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_equal_torch_for_other_shapes(tmp_path, name):
    reference = torch_qwen(tmp_path, **SHAPES[name])
    model = models.Model(hf.read_config(tmp_path))
    batch, inputs = make(tmp_path, ROWS["rows of other sizes"])
    params = hf.load(tmp_path, model)
    assert logits_differ(reference, model, params, batch, inputs) < 1e-5
    errors = gradient_errors(reference, model, params, batch, inputs)
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ROWS)
def test_gradients_equal_torch_leaf_by_leaf(qwen, name, side):
    folder, reference, model = qwen
    batch, inputs = make(folder, ROWS[name], side)
    errors = gradient_errors(reference, model, hf.load(folder, model), batch, inputs)
    assert max(errors.values()) < 1e-4, errors


def test_images_of_any_size_share_one_compilation(qwen):
    folder, _, model = qwen
    params, forward = hf.load(folder, model), jax.jit(model.forward)
    for rows in ([[photo(24, 24)], [photo(32, 16)]], [[photo(16, 40)], [photo(32, 24)]]):
        forward(params, make(folder, rows)[0])
    assert forward._cache_size() == 1


def test_greedy_tokens_equal_transformers(qwen):
    import torch

    folder, reference, model = qwen
    for name in ("two sizes in a row", "text"):
        batch, inputs = make(folder, ROWS[name], "left")
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        ours = generate.generate(model, hf.load(folder, model), batch, new_tokens=9, stop=(95_000,))
        np.testing.assert_array_equal(np.asarray(ours), theirs[:, batch["tokens"].shape[1] :].numpy())


def test_the_processor_s_own_batch_is_ours(qwen):
    """Text, expanded placeholders and patches against the image processor and tokenizer used by hand."""
    folder, _, _ = qwen
    processor = hf.read_processor(folder)
    row = ROWS["two sizes in a row"][0]
    batch, _ = make(folder, [row])
    out = processor.image_processor(row, return_tensors="np")
    np.testing.assert_array_equal(batch["patches"][0][batch["segment"][0] >= 0], out["pixel_values"])
    counts = [int(h * w) // 4 for _, h, w in out["image_grid_thw"]]
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["tokens"] == image).sum() == sum(counts)
    assert [int((batch["segment"][0] == i).sum()) for i in range(2)] == [4 * n for n in counts]


def test_padding_patches_change_nothing(qwen):
    folder, _, model = qwen
    params = hf.load(folder, model)
    batch, _ = make(folder, ROWS["one image"])
    other = {k: v.copy() for k, v in batch.items()}
    other["patches"][other["segment"] < 0] = 7.0
    np.testing.assert_array_equal(model.forward(params, batch), model.forward(params, other))


def test_text_only_batches_do_not_touch_the_vision_tower(qwen):
    folder, _, model = qwen
    grads = jax.grad(mean_loss(model))(hf.load(folder, model), make(folder, ROWS["text"])[0])
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads["visual"]))
    assert any(np.asarray(g).any() for g in jax.tree.leaves(grads["language_model"]))


def test_every_leaf_has_a_rule_and_every_linear_weight_is_eligible(qwen):
    import re

    from mmu_jax import sharding

    model = qwen[2]
    abstract = model.abstract()
    assert sharding.unmatched(abstract, model.module.RULES) == []
    linear = {name for name in trees.flatten(abstract) if re.fullmatch(model.module.ELIGIBLE, name)}
    rest = {name for name in trees.flatten(abstract) if name.endswith("weight")} - linear
    assert all(re.search("norm|ln_q|embed_tokens|lm_head", name) for name in rest), rest
