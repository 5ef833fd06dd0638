"""Law 1: the same checkpoint gives torch's logits to 1e-5 and torch's gradients to 1e-4, float32."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from folders import edit, first, load, retensor
from mmu_jax import InputError, hf, models, trees
from mmu_jax.models import config
from toys import make_batch
from twins import gradient_errors, logits_differ, mean_loss, torch_gradients, torch_llava, torch_qwen


def mixed():
    batch = make_batch()
    batch["tokens"][::2][batch["tokens"][::2] == 5] = 7  # every other row has no image
    return batch


BATCHES = {
    "text": lambda: make_batch(images=0),
    "one image": make_batch,
    "two images": lambda: make_batch(images=2),
    "mixed rows": mixed,
    "left padding": lambda: make_batch(side="left"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_logits_equal_torch(llava, name):
    folder, reference, model = llava
    assert logits_differ(reference, model, hf.load(folder, model), BATCHES[name]()) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"text": {"num_key_value_heads": 4}},
        {"text": {"num_key_value_heads": 2}},
        {"text": {"num_key_value_heads": 4, "head_dim": 16}},
        {"tie": True},
        {"vision_feature_layer": -1},
        {"vision_feature_select_strategy": "full", "image_seq_length": 5},
        {"text": {"attention_bias": True, "mlp_bias": True}},
    ],
    ids=["gqa2", "gqa4", "gqa2-head16", "tied", "last-layer", "full", "biases"],
)
def test_logits_and_gradients_equal_torch_for_other_shapes(tmp_path, options):
    tokens = options.get("image_seq_length", 4)
    reference = torch_llava(tmp_path, **{k: v for k, v in options.items() if k != "image_seq_length"})
    model = models.Model(hf.read_config(tmp_path))
    batch, params = make_batch(rows=3, image_tokens=tokens), hf.load(tmp_path, model)
    assert logits_differ(reference, model, params, batch) < 1e-5
    errors = gradient_errors(reference, model, params, batch)
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("name", BATCHES)
def test_gradients_equal_torch_leaf_by_leaf(llava, name):
    folder, reference, model = llava
    batch = BATCHES[name]()
    errors = gradient_errors(reference, model, hf.load(folder, model), batch)
    assert max(errors.values()) < 1e-4, errors


def test_text_only_batches_do_not_touch_the_vision_tower(llava):
    folder, _, model = llava
    grads = jax.grad(mean_loss(model))(hf.load(folder, model), make_batch(images=0))
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads["vision_tower"]))
    hlo = jax.jit(model.forward).lower(model.abstract(), make_batch(images=0)).as_text()
    assert "3x24x24" not in hlo
    assert "3x24x24" in jax.jit(model.forward).lower(model.abstract(), make_batch()).as_text()


def test_batch_saliency_equals_torch(llava):
    from mmu_jax import saliency

    folder, reference, model = llava
    batches = [make_batch(seed=seed) for seed in range(3)]
    leaves = model.family.eligible
    ours = saliency.scores(mean_loss(model), hf.load(folder, model), batches, leaves=leaves, unit="batch")
    theirs = [torch_gradients(reference, model, batch) for batch in batches]
    for name, leaf in trees.flatten(ours).items():
        expected = np.mean([t[name].astype(np.float64) ** 2 for t in theirs], axis=0)
        assert np.abs(np.asarray(leaf) - expected).max() / expected.max() < 1e-4, name


def test_bfloat16_compute_stays_near_float32(llava):
    import jax.numpy as jnp

    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    low = models.Model(model.config, jnp.bfloat16)
    exact, rough = np.asarray(model.forward(params, batch)), np.asarray(low.forward(params, batch), np.float32)
    # bfloat16 keeps 8 bits: each of some 20 roundings in sequence may move a logit by 2^-9 of its scale.
    assert np.abs(exact - rough)[batch["valid"]].max() < 20 * 2**-9 * np.abs(exact).max()
    assert rough.dtype == np.float32 and not np.array_equal(exact, rough)


FLAGS = {
    "at the top": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
    "in the text config": {"text_config": {"tie_word_embeddings": True}},
    "in both": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
}


def tied(folder, family, where, added):
    """A tied checkpoint with a head beside its embedding that differs by ``added``; returns the torch class."""
    reference = (torch_llava if family == "llava" else torch_qwen)(folder, tie=True)

    def flags(config):
        config.pop("tie_word_embeddings")
        config["text_config"].pop("tie_word_embeddings", None)
        inner = config["text_config"] | FLAGS[where].get("text_config", {})
        return config | FLAGS[where] | {"text_config": inner}

    edit(folder, "config.json", flags)
    head = "language_model.lm_head.weight" if family == "llava" else "lm_head.weight"
    retensor(folder, lambda t: t | {head: t[first(t, "embed_tokens.weight")] + np.float32(added)})
    return type(reference), head


def same_logits(kind, folder, params, model):
    import torch

    tokens = np.array([[7, 8, 9, 10, 11, 12]], np.int32)
    batch = {"tokens": tokens, "valid": tokens > 0, "positions": np.arange(6, dtype=np.int32)[None]}
    with torch.no_grad():
        theirs = kind.from_pretrained(folder).eval()(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    return np.abs(np.asarray(model.forward(params, batch)) - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("where", FLAGS)
def test_a_head_that_is_the_embedding_is_tied_and_both_are_written(tmp_path, family, where):
    kind, head = tied(tmp_path / "in", family, where, 0)
    params, model = load(tmp_path / "in")
    assert model.config.tie_word_embeddings and "lm_head" not in params
    moved = jax.tree.map(lambda x: x + 0.01, params)
    changed = hf.save(moved, model, tmp_path / "in", tmp_path / "out")
    assert changed[hf.EMBED] == trees.flatten(params)[hf.EMBED].size
    table = load_file(tmp_path / "out" / hf.SINGLE)
    np.testing.assert_array_equal(table[head], table[first(table, "embed_tokens.weight")])
    assert same_logits(kind, tmp_path / "out", moved, model)
    hf.save(params, model, tmp_path / "in", tmp_path / "again")
    assert (tmp_path / "again" / hf.SINGLE).read_bytes() == (tmp_path / "in" / hf.SINGLE).read_bytes()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("where", FLAGS)
def test_a_head_of_its_own_is_kept_apart_with_a_line(tmp_path, family, where, caplog):
    kind, head = tied(tmp_path / "in", family, where, 1)
    params, model = load(tmp_path / "in")
    assert "lm_head is not the embedding" in caplog.text
    assert not model.config.tie_word_embeddings and "lm_head" in params
    assert same_logits(kind, tmp_path / "in", params, model)
    moved = jax.tree.map(lambda x: x * 1.01, params)
    hf.save(moved, model, tmp_path / "in", tmp_path / "out")
    assert same_logits(kind, tmp_path / "out", moved, model)
    believed = models.Model(config.read(tmp_path / "in"))
    with pytest.raises(InputError, match="start again now that the weights are here"):
        hf.load(tmp_path / "in", believed)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_tied_model_whose_head_alone_is_in_the_files(tmp_path, family):
    kind, head = tied(tmp_path / "in", family, "at the top", 0)
    retensor(tmp_path / "in", lambda t: {k: v for k, v in t.items() if k != first(t, "embed_tokens.weight")})
    params, model = load(tmp_path / "in")
    moved = jax.tree.map(lambda x: x + 0.01, params)
    hf.save(moved, model, tmp_path / "in", tmp_path / "out")
    assert same_logits(kind, tmp_path / "out", moved, model)


ARITHMETIC = {
    "llama with linear RoPE": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama 3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e2,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral without a window": ("mistral", {"sliding_window": None, "num_key_value_heads": 2}),
    "mistral, whose projections have no bias": (
        "mistral",
        {"sliding_window": None, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    ),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "qwen2 with a window for no layer": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_text_models_that_are_ours(tmp_path, name):
    import torch
    from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    from twins import TEXT, VISION

    kind, options = ARITHMETIC[name]
    inner = AutoConfig.for_model(kind, vocab_size=96, max_position_embeddings=128, **(TEXT | options))
    torch.manual_seed(0)
    reference = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=inner, image_token_id=5)
    ).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path)
    params, model = load(tmp_path)
    assert logits_differ(reference, model, params, make_batch(length=32)) < 1e-5
