"""Law 10: one backward pass gives what one gradient a row gives, for every kind, both families, every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, curvature, hf, objectives, rowwise, saliency, sharding, trees
from toys import make_batch
from twins import QWEN_ROWS, qwen_batch

LOSSES = ("descent", "descent_all", "sketch")


def one_by_one(model, params, batches, leaves, kind, name="descent"):
    """Each row a batch of its own, by ``jax.grad``."""
    part, rest = trees.split(params, leaves)
    loss, rows, total = objectives.of_params(name, model), 0, None

    def mean(part, row):
        value, count = loss(trees.merge(part, rest), row)
        return value / jnp.maximum(count, 1)

    gradient = jax.jit(jax.grad(mean))
    for batch in batches:
        for i in np.flatnonzero((batch["weights"] > 0).any(axis=1)):
            grads = gradient(part, {key: x[i : i + 1] for key, x in batch.items()})
            made = jax.tree.map(lambda g: np.asarray(saliency.KINDS[kind](g), np.float64), grads)
            total, rows = made if total is None else jax.tree.map(np.add, total, made), rows + 1
    return jax.tree.map(lambda x: np.abs(x / rows), total)


def agree(got, expected):
    for (name, found), right in zip(trees.flatten(got).items(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(found), right, rtol=1e-5, atol=1e-5 * np.abs(right).max(), err_msg=name)


def two_sets():
    """Rows with two images each, one of them without weight, and rows of text."""
    seen, read = make_batch(rows=8, images=2, image_tokens=4, seed=1), make_batch(rows=8, images=0, seed=2)
    seen["weights"][5], seen["row"][5] = 0.0, -1
    return [seen, read]


@pytest.mark.parametrize("kind", saliency.KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_one_backward_equals_a_gradient_a_row(llava, name, kind):
    folder, _, model = llava
    params, sets = hf.load(folder, model), two_sets()
    got = saliency.scores(objectives.of_rows(name, model), params, sets, leaves=model.family.eligible, kind=kind)
    agree(got, one_by_one(model, params, sets, model.family.eligible, kind, name))


def test_of_images_of_any_size_and_a_patch_embedding(qwen):
    folder, _, model = qwen
    params = hf.load(folder, model)
    sets = [qwen_batch(folder, QWEN_ROWS[name])[0] for name in ("two sizes in a row", "text")]
    sets = [batch | {"row": np.arange(len(batch["tokens"]))} for batch in sets]
    got = saliency.scores(objectives.of_rows("descent", model), params, sets, leaves=model.family.eligible)
    agree(got, one_by_one(model, params, sets, model.family.eligible, "squared"))


def test_on_every_mesh(llava, mesh):
    folder, _, model = llava
    leaves, sets = model.family.eligible, two_sets()
    expected = one_by_one(model, hf.load(folder, model), sets, leaves, "squared")
    params = hf.load(folder, model, mesh)
    with jax.set_mesh(mesh):
        placed = [sharding.put(batch, mesh) for batch in sets]
        got = saliency.scores(objectives.of_rows("descent", model), params, placed, leaves=leaves)
    agree(got, expected)
    for name, leaf in trees.flatten(got).items():
        assert leaf.sharding.is_equivalent_to(trees.flatten(params)[name].sharding, leaf.ndim), name


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_rows_at_once_do_not_change_the_scores(llava, chunk):
    folder, _, model = llava
    params, sets = hf.load(folder, model), two_sets()
    loss, leaves = objectives.of_rows("descent", model), model.family.eligible
    got = saliency.scores(loss, params, sets, leaves=leaves, chunk=chunk)
    agree(got, jax.tree.map(np.asarray, saliency.scores(loss, params, sets, leaves=leaves)))


def test_params_in_bfloat16_are_scored_in_float32(llava):
    folder, _, model = llava
    coarse = jax.tree.map(lambda x: x.astype(jnp.bfloat16), hf.load(folder, model))
    fine = jax.tree.map(lambda x: x.astype(jnp.float32), coarse)
    loss, leaves = objectives.of_rows("descent", model), model.family.eligible
    got, expected = (saliency.scores(loss, params, two_sets(), leaves=leaves) for params in (coarse, fine))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
    agree(got, jax.tree.map(np.asarray, expected))


def test_small_gradients_of_float16_params_do_not_vanish():
    losses = rowwise.Losses(lambda p, b: rowwise.contract(p["w"], b["x"], jnp.float32)[:, 0])
    params, batch = {"w": jnp.zeros((1, 2), jnp.float16)}, {"x": jnp.array([[1e-5, 1e-4], [2e-5, 0.0]])}
    got = saliency.scores(losses, params, [batch])["w"]
    np.testing.assert_allclose(got, [[2.5e-10, 5e-9]], rtol=1e-5)


def test_grams_of_every_row_in_one_backward(llava):
    folder, _, model = llava
    params, (batch, _) = hf.load(folder, model), two_sets()
    leaves = curvature.matrices(params, model.family.eligible)
    got = curvature.grams(objectives.of_rows("descent", model), params, [batch], leaves=leaves)
    rows = [{key: x[i : i + 1] for key, x in batch.items()} for i in range(8) if i != 5]
    expected = curvature.grams(objectives.of_params("descent", model), params, rows, leaves=leaves)
    agree(got, jax.tree.map(np.asarray, expected))
    blocks = [
        curvature.grams(objectives.of_rows("descent", model), params, [batch], leaves=leaves, block=(i, 2))
        for i in (0, 1)
    ]
    name = next(name for name, x in trees.flatten(got).items() if trees.stacked(name) and len(x) == 2)
    joined = np.concatenate([np.asarray(trees.flatten(block)[name]) for block in blocks])
    np.testing.assert_array_equal(joined, trees.flatten(got)[name])


def test_a_set_given_twice_is_weighed_once():
    losses = rowwise.Losses(lambda p, b: rowwise.contract(p["w"], b["x"], jnp.float32)[:, 0])
    forget, keep = [{"x": jnp.array([[3.0, 0.0]])}], [{"x": jnp.array([[1.0, 2.0]])}]
    got = saliency.difference(losses, {"w": jnp.zeros((1, 2))}, forget, {".*": [keep, keep]})["w"]
    np.testing.assert_allclose(got, [[8.0, -4.0]])


def test_grams_of_rows_that_are_shorter_and_longer_than_the_output():
    rng = np.random.default_rng(0)
    losses = rowwise.Losses(lambda p, b: jnp.square(rowwise.contract(p["w"], b["x"], jnp.float32)).sum(axis=(1, 2)))
    params = {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    for tokens in (2, 9):
        batch = {"x": jnp.asarray(rng.normal(size=(4, tokens, 3)), jnp.float32)}
        got = rowwise.sums(losses, params, {"w": jnp.zeros((3, 3))}, batch, "gram")["w"]
        grads = 2 * np.einsum("bto,bti->boi", batch["x"] @ params["w"].T, batch["x"])
        np.testing.assert_allclose(got, np.einsum("boi,boj->ij", grads, grads), rtol=1e-4)


def test_a_row_that_weighs_nothing_may_hold_anything(llava):
    folder, _, model = llava
    params, loss = hf.load(folder, model), objectives.of_rows("descent", model)
    first, second = two_sets()[0], two_sets()[0]
    second["pixels"][5] = np.nan
    got = [saliency.scores(loss, params, [batch], leaves=model.family.eligible) for batch in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *got)


def test_what_is_no_loss_of_rows_is_refused(llava):
    folder, _, model = llava
    params, batches = hf.load(folder, model), two_sets()
    whole = rowwise.Losses(lambda params, batch: model.forward(params, batch).mean())
    with pytest.raises(InputError, match=r"one real number for each of 8 rows, found float32\[\]"):
        saliency.scores(whole, params, batches, leaves=model.family.eligible)
    with pytest.raises(InputError, match="unit='batch'"):
        saliency.scores(objectives.of_rows("descent", model), params, batches, unit="batch")
    turned = rowwise.Losses(lambda p, b: rowwise.contract(p["w"], b["x"].T, jnp.float32).sum(axis=1)[:2])
    with pytest.raises(InputError, match="the 2 rows of the batch on axis 0"):
        saliency.scores(turned, {"w": jnp.ones((1, 2))}, [{"x": jnp.ones((2, 3)), "y": jnp.ones((2, 3))}])


def test_which_leaves_are_told_apart(llava):
    model = llava[2]
    eligible = model.family.eligible
    assert rowwise.fits(model.abstract(), eligible, eligible)
    assert not rowwise.fits(model.abstract(), r"language_model/.*", eligible)  # norms and embeddings


def test_one_pass_weighs_each_side_against_its_own_sets(llava):
    folder, _, model = llava
    params, loss, sides = hf.load(folder, model), objectives.of_rows("descent", model), model.family.sides
    forget, retain, text = ([make_batch(seed=seed, images=images)] for seed, images in ((1, 1), (2, 1), (3, 0)))
    preserve = {sides["vision"]: [retain], sides["language"]: [retain, text]}
    got = saliency.difference(loss, params, forget, preserve, tau=0.7, leaves=model.family.eligible)
    for side, kept in ((sides["vision"], retain), (sides["language"], retain + text)):
        leaves = rf"(?={side}\Z)(?:{model.family.eligible})"
        alone = trees.flatten(saliency.difference(loss, params, forget, kept, tau=0.7, leaves=leaves))
        for name, x in alone.items():
            np.testing.assert_allclose(trees.flatten(got)[name], x, rtol=1e-5, atol=1e-6 * np.abs(x).max())
    with pytest.raises(InputError, match="a pattern of preserve for every leaf"):
        saliency.difference(loss, params, forget, {sides["vision"]: [retain]}, leaves=model.family.eligible)


# ---- what a weight contracts in bfloat16


def rounded(x):
    """The float64 of the nearest bfloat16."""
    return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("lead", [(7,), (3, 5), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 10), (10, 6), (96, 4), (4, 96), (1, 3)])
def test_a_product_in_bfloat16_is_rounded_once_and_its_gradients_are_those_of_the_whole_product(lead, inputs, outputs):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(outputs, inputs)), rounded(rng.normal(size=(*lead, inputs)))
    back = rounded(rng.normal(size=(*lead, outputs)))

    def total(weight, x):
        y = rowwise.linear(weight, x, jnp.bfloat16)
        return (y.astype(jnp.float32) * back).sum(), y

    grads, y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(jnp.float32(weight), jnp.asarray(x, jnp.bfloat16))
    right = x @ rounded(weight).T
    assert y.dtype == jnp.bfloat16 and grads[0].dtype == jnp.float32 and grads[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded(y), right, rtol=2**-8, atol=1e-5)
    # Of the weight in float32, whatever it was multiplied in.
    outer = np.tensordot(back, x, (range(len(lead)), range(len(lead))))
    np.testing.assert_allclose(grads[0], outer, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rounded(grads[1]), back @ rounded(weight), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_products_in_bfloat16_of_many_weights_or_many_inputs_are_those_of_each(axes, inputs, outputs):
    rng = np.random.default_rng(1)
    weight, x = (rng.normal(size=(4, *shape)).astype(np.float32) for shape in ((outputs, inputs), (2, 6, inputs)))
    weight, x = (array if axis == 0 else array[0] for array, axis in zip((weight, x), axes, strict=True))
    gradient = jax.grad(lambda w, x: jnp.square(rowwise.linear(w, x.astype(jnp.bfloat16), jnp.bfloat16)).sum(), (0, 1))
    many = jax.jit(jax.vmap(gradient, axes))(weight, x)
    for i in range(4):
        alone = gradient(*(array[i] if axis == 0 else array for array, axis in zip((weight, x), axes, strict=True)))
        for got, right in zip(many, alone, strict=True):
            np.testing.assert_allclose(got[i], right, rtol=2**-7, atol=2**-7)  # cotangents are rounded to eight bits


def test_a_program_for_another_platform_has_the_plain_products():
    def total(weight, x):
        return rowwise.linear(weight, x, jnp.bfloat16).astype(jnp.float32).sum()

    given = jnp.zeros((4, 8)), jnp.zeros((2, 3, 8), jnp.bfloat16)
    traced = jax.jit(jax.grad(total, (0, 1))).trace(*given)
    for platform, made in (("cuda", "bf16>"), ("tpu", "bf16>"), ("cpu", "f32>")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        products = [line.split("->")[-1] for line in text.splitlines() if "dot_general" in line]
        assert len(products) >= 2 and all(f"x{made}" in product for product in products), platform


def test_products_in_bfloat16_on_a_mesh_are_those_of_one_device(mesh):
    rng = np.random.default_rng(2)
    weight, x = jnp.float32(rng.normal(size=(16, 8))), jnp.asarray(rng.normal(size=(8, 4, 8)), jnp.bfloat16)

    def total(weight, x):
        return jnp.square(rowwise.linear(weight, x, jnp.bfloat16).astype(jnp.float32)).sum()

    gradient, (rows, columns) = jax.jit(jax.grad(total, (0, 1))), mesh.axis_names
    alone, spec = gradient(weight, x), jax.sharding.PartitionSpec
    placed = [jax.device_put(array, jax.sharding.NamedSharding(mesh, named))
              for array, named in ((weight, spec(columns)), (x, spec(rows)))]  # fmt: skip
    for got, right in zip(gradient(*placed), alone, strict=True):
        # Sums over devices come in another order, and are rounded to eight bits after it.
        np.testing.assert_allclose(np.float32(got), np.float32(right), rtol=2**-6, atol=2**-6)
