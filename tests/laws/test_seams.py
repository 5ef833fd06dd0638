"""Hidden states and visual features: those of transformers, through every mesh, LoRA and one backward pass of all rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, hf, lora, objectives, saliency, sharding, trees
from mmu_jax.models import decoder
from mmu_jax.objectives import LOSSES, Loss, Seen
from toys import SPEC, make_batch
from twins import QWEN_ROWS, qwen_batch, torch_inputs


def mixed(llava):
    """(folder, torch model, our model, batch, what torch takes), where every other row has no image."""
    batch = make_batch()
    batch["tokens"][::2][batch["tokens"][::2] == 5] = 7
    return *llava, batch, torch_inputs(batch)


def sized(qwen):
    """The same of images of two sizes in a row."""
    return *qwen, *qwen_batch(qwen[0], QWEN_ROWS["two sizes in a row"])


def close(ours, theirs, where):
    differ = np.abs(np.asarray(ours) - theirs)[where].max()
    assert differ < 1e-5 * max(1, np.abs(theirs).max())


def check(folder, reference, model, batch, inputs):
    import torch

    params = hf.load(folder, model)
    with torch.no_grad():
        hidden = reference(**inputs, output_hidden_states=True).hidden_states
        options = {"image_grid_thw": inputs["image_grid_thw"]} if "image_grid_thw" in inputs else {}
        seen = reference.model.get_image_features(inputs["pixel_values"], **options).pooler_output
    states = jax.jit(lambda p, b: [model.states(p, b, i) for i in (0, 1)])(params, batch)
    close(states[0], hidden[1].numpy(), batch["valid"])
    with torch.no_grad():  # theirs are normed after the last layer
        last = reference.model.language_model.norm(torch.tensor(np.asarray(states[1]))).numpy()
    close(last, hidden[2].numpy(), batch["valid"])
    features, there = jax.jit(model.features)(params, batch)
    theirs = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).numpy()
    assert there.sum() == len(theirs) == (batch["tokens"] == model.config.image_token_id).sum()
    close(np.asarray(features)[np.asarray(there)], theirs, ...)


def test_states_and_features_are_those_of_transformers(llava):
    check(*mixed(llava))


def test_states_and_features_of_images_of_any_size_are_those_of_transformers(qwen):
    check(*sized(qwen))


def test_features_of_photos_that_rows_share_are_those_of_every_row(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch(rows=4)
    batch["pixels"][:] = batch["pixels"][[0, 1, 0, 1]]
    shared = batch | {"pixels": batch["pixels"][:2], "photo": np.array([0, 1, 0, 1], np.int32)}
    features = jax.jit(model.features)
    for one, other in zip(features(params, batch), features(params, shared), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    with pytest.raises(InputError, match="a batch with images for visual features, found one of text"):
        model.features(params, make_batch(images=0))


def test_no_layer_above_and_no_head_runs(llava):
    folder, _, model = llava
    grads = jax.grad(lambda p: jnp.square(model.states(p, make_batch(), 0)).sum())(hf.load(folder, model))
    for name, g in trees.flatten(grads["language_model"]["layers"]).items():
        assert np.asarray(g[0]).any() and not np.asarray(g[1]).any(), name
    assert (
        not np.asarray(grads["lm_head"]["weight"]).any()
        and np.asarray(grads["multi_modal_projector"]["linear_1"]["weight"]).any()
    )
    text = jax.jit(lambda p: model.states(p, make_batch(), 0)).lower(model.abstract()).as_text()
    assert "x96x" not in text.replace("96x32", ""), "no logits"


def test_a_layer_is_an_index_or_a_place_between_the_first_and_the_last(llava):
    text = llava[2].config.text_config
    assert [decoder.layer_at(text, i) for i in (0, 1, -1, -2, 0.0, 0.4, 1.0)] == [0, 1, 1, 0, 0, 0, 1]
    for wrong in (2, -3, 1.5, -0.5):
        with pytest.raises(InputError, match=f"a layer from -2 to 1, or from 0.0, .* found {wrong}"):
            decoder.layer_at(text, wrong)


def test_states_of_several_layers_are_those_of_each_and_no_layer_runs_twice(llava, monkeypatch):
    folder, _, model = llava
    params, batch, run, cut = hf.load(folder, model), make_batch(), [], decoder.cut
    monkeypatch.setattr(decoder, "cut", lambda params, *which: run.append(which) or cut(params, *which))
    layers = (1.0, 0, 0.4)
    found = jax.jit(lambda p, b: model.states_of(p, b, layers))(params, batch)
    assert run == [(0, 1), (1, 2)]
    for layer, states in zip(layers, found, strict=True):
        np.testing.assert_allclose(states, model.states(params, batch, layer), atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-2 and (found[1] == found[2]).all()


def test_states_and_features_of_adapted_params_are_those_of_the_merged(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    factors = jax.tree.map(lambda x: x + 0.1, lora.init(SPEC, params, jax.random.key(0)))
    adapted, products = lora.adapt(SPEC, params, {"free": factors}), lora.low_rank(SPEC, {"free": factors})

    def merged(name, leaf):
        if name not in products.a:
            return leaf
        return leaf + products.scale * jnp.einsum("lor,lri->loi", products.b[name], products.a[name])

    seen = jax.jit(lambda p, b: (model.states(p, b, 0), model.features(p, b)[0]))
    found, expected = seen(adapted, batch), seen(trees.map_named(merged, params), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def _squares(values, weights):
    return (jnp.square(values).mean(axis=-1) * weights).sum(), weights.sum()


READING = {
    "states": Loss(lambda m, b, layer=1.0: _squares(m.states(b, layer), b["weights"]), reads="states"),
    "features": Loss(lambda m, b: _squares(*m.features(b)), reads="features"),
}


@pytest.mark.parametrize("name", READING)
def test_one_backward_pass_tells_rows_apart(llava, monkeypatch, name):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch(rows=4)
    monkeypatch.setitem(LOSSES, "reading", READING[name])
    leaves = r"multi_modal_projector/.*weight|language_model/layers/mlp/down_proj/weight"
    by_row = saliency.scores(objectives.of_rows("reading", model), params, [batch], leaves=leaves)
    one_by_one = saliency.scores(objectives.of_params("reading", model), params, [batch], leaves=leaves, chunk=4)
    for leaf, expected in trees.flatten(one_by_one).items():
        expected = np.asarray(expected)
        np.testing.assert_allclose(trees.flatten(by_row)[leaf], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_mesh_says_the_same(llava):
    folder, _, model = llava
    batch, mesh = make_batch(), sharding.make_mesh(4, 2)
    seen = jax.jit(lambda p, b: (Seen(model, p).states(b, 0), Seen(model, p).features(b)[0]))
    alone = seen(hf.load(folder, model), batch)
    with jax.set_mesh(mesh):
        found = seen(hf.load(folder, model, mesh), sharding.put(batch, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, alone)


def test_a_teacher_is_the_vanilla_model_and_has_no_gradient(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    moved = jax.tree.map(lambda x: x + 0.01, params)
    np.testing.assert_array_equal(
        Seen(model, moved, params).teacher.params["lm_head"]["weight"], params["lm_head"]["weight"]
    )
    grads = jax.jit(jax.grad(lambda v: Seen(model, moved, v).teacher.features(batch)[0].sum()))(params)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_what_a_loss_reads_is_of_the_table():
    with pytest.raises(InputError, match="what a loss reads among answers, logits, states, features, found 'state'"):
        dataclasses.replace(LOSSES["descent"], reads="state")
