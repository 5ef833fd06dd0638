"""What is kept: sketches of the Fisher information, Grams of gradients, and the factors of both."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, curvature, hf, losses, models, objectives, sharding, trees
from toys import Rows, Table, basis, dealt_rows, make_batch, rows_of_a_device, table
from twins import QWEN_ROWS, mean_loss, qwen_batch

RNG = np.random.default_rng(0)

# ---- the sketch


def fisher(w, x, weights):
    """The exact Fisher of the flat ``w`` of ``softmax(w x)``: ``sum_t w_t^2 (diag(p) - p p^T) x x^T`` in float64."""
    total = 0
    for row, weight in zip(np.asarray(x, np.float64), weights, strict=True):
        z = np.asarray(w, np.float64) @ row
        p = np.exp(z) / np.exp(z).sum()
        total = total + weight**2 * np.kron(np.diag(p) - np.outer(p, p), np.outer(row, row))
    return total


def test_over_all_signs_the_mean_square_of_the_sketch_is_the_fisher(monkeypatch):
    """Three classes, two positions: 64 draws are all there are, so that the expectation is exact."""
    w = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    x = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)  # the last predicts nothing
    weights = jnp.asarray([[0.0, 1.0, 0.5]])
    found, draws = 0, list(itertools.product((-1.0, 1.0), repeat=6))
    for signs in draws:
        monkeypatch.setattr(
            jax.random, "rademacher", lambda key, shape, dtype, s=signs: jnp.array(s, dtype).reshape(shape)
        )
        g = jax.grad(lambda w: losses.sketch((x @ w.T)[None], weights, jnp.array([0]))[0])(w).ravel()
        found = found + np.outer(np.asarray(g, np.float64), g) / len(draws)
    expected = fisher(w, x[:-1], [1.0, 0.5])
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_the_signs_that_are_drawn_are_fair_and_each_position_s_own():
    """4,000 seeds: an entry's mean is off by less than 5 standard errors, here at most 5 sqrt(3 / 4000) of the largest."""
    w = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    x, weights = jnp.asarray(RNG.normal(size=(2, 3, 2)), jnp.float32), jnp.ones((2, 3))

    def flat(seed):
        return jax.grad(lambda w: losses.sketch(x @ w.T, weights, jnp.arange(2), seed=seed)[0])(w).ravel()

    g = np.asarray(jax.jit(jax.vmap(flat))(jnp.arange(4000)), np.float64)
    expected = fisher(w, x[:, :-1].reshape(-1, 2), [1.0] * 4)
    np.testing.assert_allclose(g.T @ g / len(g), expected, atol=5 * np.sqrt(3 / 4000) * np.abs(expected).max())


def test_the_sketch_asks_no_labels():
    batch = Rows("retain", 1).batch(0)
    other = batch | {"tokens": batch["tokens"].copy()}
    other["tokens"][:, -1] = (other["tokens"][:, -1] + 1) % 5  # only a label: nothing follows it
    for name, equal in (("sketch", True), ("descent", False)):
        grads = [
            jax.grad(lambda p, b, n=name: objectives.of_params(n, Table())(p, b)[0])(table(), b) for b in (batch, other)
        ]
        assert bool((grads[0]["table"]["weight"] == grads[1]["table"]["weight"]).all()) == equal


def test_rows_that_only_fill_count_for_nothing_and_each_row_draws_its_own_signs():
    logits, weights = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32), jnp.ones((3, 4))
    total, count = losses.sketch(logits, weights, jnp.arange(3))
    alone = [losses.sketch(logits[i : i + 1], weights[:1], jnp.array([i])) for i in range(3)]
    np.testing.assert_allclose(total, sum(t for t, _ in alone), rtol=1e-5)
    filled = losses.sketch(logits, weights.at[2].set(0.0), jnp.array([0, 1, -1]))
    np.testing.assert_allclose(filled[0], alone[0][0] + alone[1][0], rtol=1e-5)
    assert float(count) == 9 and float(filled[1]) == 6
    draws = [
        losses.sketch(logits[:1], weights[:1], jnp.array([row]), seed=seed)[0] for row in (0, 1) for seed in (0, 1)
    ]
    assert len({float(d) for d in draws}) == 4


# ---- Grams


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def family(request, llava, whole):
    """(folder, model, batches) of both."""
    if request.param == "llava":
        return llava[0], llava[2], [make_batch(seed=seed) for seed in range(2)]
    folder = whole["qwen2_vl"]
    return (
        folder,
        models.Model(hf.read_config(folder)),
        [qwen_batch(folder, QWEN_ROWS[n])[0] for n in ("one image", "text")],
    )


def test_grams_are_sums_of_squares_of_gradients_layer_by_layer(family):
    folder, model, batches = family
    params, loss = hf.load(folder, model), objectives.of_params("descent", model)
    found = curvature.grams(loss, params, batches, leaves=model.family.eligible)
    gradient = jax.jit(jax.grad(mean_loss(model)))
    sums = {name: 0.0 for name in trees.flatten(found)}
    for batch in batches:
        grads = trees.flatten(gradient(params, batch))
        for name in sums:
            g = np.asarray(grads[name], np.float64)
            layers = [row.T @ row for row in g.reshape(-1, *g.shape[-2:])]
            sums[name] = sums[name] + np.reshape(layers, (*g.shape[:-2], *2 * g.shape[-1:]))
    assert {2, 3} <= {expected.ndim for expected in sums.values()}
    for name, expected in sums.items():
        got = trees.flatten(found)[name]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(got), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    chosen = trees.flatten(trees.select(params, model.family.eligible))
    assert set(sums) == {name for name, yes in chosen.items() if yes}


def on_mesh(llava, mesh):
    folder, _, model = llava
    params, loss = hf.load(folder, model, mesh), objectives.of_params("sketch", model)
    with jax.set_mesh(mesh):
        batches = [sharding.put(make_batch(seed=seed), mesh) for seed in range(2)]
        return params, curvature.grams(loss, params, batches, leaves=model.family.eligible)


@pytest.fixture(scope="module")
def on_one_device(llava):
    with jax.default_matmul_precision("highest"):
        return on_mesh(llava, sharding.make_mesh(1))[1]


def test_every_mesh_has_the_same_grams_and_prints(llava, mesh, on_one_device):
    """Along their first axis of inputs they lie over every axis of the mesh that the weight lies along."""
    params, found = on_mesh(llava, mesh)
    for name, expected in trees.flatten(on_one_device).items():
        got = trees.flatten(found)[name]
        np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=1e-5 * float(jnp.abs(expected).max()))
        assert rows_of_a_device(got) == dealt_rows(trees.flatten(params)[name], mesh), name
    assert trees.fingerprint(params) == trees.fingerprint(jax.tree.map(np.asarray, params))


def test_blocks_of_layers_are_the_whole_put_together(llava):
    """In every number of blocks, more than there are layers too; leaves that stack none are in the first."""
    folder, _, model = llava
    params, loss = hf.load(folder, model), objectives.of_params("sketch", model)
    batches, leaves = (
        [make_batch(seed=seed) for seed in range(2)],
        r".*(layers|projector)/.*(q_proj|up_proj|linear_1)/weight",
    )

    def made(blocks):
        parts = [curvature.grams(loss, params, batches, leaves=leaves, block=(i, blocks)) for i in range(blocks)]
        held = [sum(x.nbytes for x in jax.tree.leaves(part)) for part in parts]
        assert sum(held) == sum(
            x.nbytes for x in jax.tree.leaves(curvature.grams(loss, params, batches, leaves=leaves))
        )
        return curvature.joined([curvature.factors(part, share=0.9) for part in parts], params)

    whole = curvature.by_name(made(1))
    assert len(whole) > 2 and any(trees.stacked(name) for name in whole) and not all(map(trees.stacked, whole))
    for blocks in (2, 3):
        found = curvature.by_name(made(blocks))
        assert found.keys() == whole.keys()
        for name, factor in found.items():
            x = jax.random.normal(jax.random.key(0), trees.flatten(params)[name].shape)
            one, other = (np.asarray(curvature.keep_out(f, x)) for f in (factor, whole[name]))
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max(), err_msg=name)


def square(params, batch):
    return jnp.mean((batch["x"] @ params["w"].T) ** 2) + jnp.sum(params["b"])


def test_what_cannot_be_measured_is_refused():
    params, batch = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, {"x": jnp.ones((4, 3))}
    with pytest.raises(InputError, match="found b which are no matrices"):
        curvature.grams(square, params, [batch])
    with pytest.raises(InputError, match="at least one batch to measure, found none"):
        curvature.grams(square, params, [], leaves="w")
    with pytest.raises(InputError, match="expected finite scores, found others in 1 of 1 leaves .w."):
        curvature.grams(square, params, [batch, {"x": jnp.full((4, 3), jnp.nan)}], leaves="w")
    with pytest.raises(InputError, match="as a list of batches, found one dict"):
        curvature.grams(square, params, batch, leaves="w")
    stacked = {"layers": {"norm": jnp.ones((3, 4))}}
    with pytest.raises(InputError, match="found layers/norm which are no matrices"):
        curvature.grams(lambda p, b: p["layers"]["norm"].sum(), stacked, [batch])
    assert curvature.grams(square, params, [batch], leaves="w")["b"] is None


def random_gram(*lead, width=6, seed=0):
    half = np.random.default_rng(seed).normal(size=(*lead, width, width)).astype(np.float32)
    return jnp.asarray(np.matmul(half, half.swapaxes(-1, -2)))


def test_pooled_sets_have_a_scale_of_their_own():
    a, b = random_gram(2, seed=1), random_gram(2, seed=2)
    mix = curvature.pooled([({"w": a, "v": None, "u": a}, 1.0), ({"w": b, "v": b, "u": None}, 0.3)])

    def unit(c):
        return np.asarray(c) / np.trace(np.asarray(c), axis1=-2, axis2=-1)[:, None, None]

    for name, expected in {"w": unit(a) + 0.3 * unit(b), "v": 0.3 * unit(b), "u": unit(a)}.items():
        np.testing.assert_allclose(mix[name], expected, atol=1e-6)
    scaled = curvature.pooled([({"w": 1e6 * a}, 1.0), ({"w": 1e-6 * b}, 0.3)])
    np.testing.assert_allclose(scaled["w"], mix["w"], atol=1e-6)
    silent = curvature.pooled([({"w": a}, 1.0), ({"w": b.at[0].set(0.0)}, 0.3)])["w"]
    np.testing.assert_allclose(silent[0], unit(a)[0], atol=1e-6)
    np.testing.assert_allclose(silent[1], mix["w"][1], atol=1e-6)


# ---- factors


def turned(values, seed=0):
    """A matrix with these eigenvalues, and its eigenvectors."""
    q = basis(np.random.default_rng(seed), width=len(values), count=len(values)).astype(np.float64)
    return jnp.asarray((q * values) @ q.T, jnp.float32), q


@pytest.mark.parametrize(
    ("how", "count"),
    [({"share": 0.49}, 1), ({"share": 0.51}, 2), ({"share": 0.85}, 3), ({"share": 0.999}, 4),
     ({"fraction": 0.5}, 2), ({"fraction": 0.1}, 1), ({"fraction": 0.99}, 3)],
)  # fmt: skip
def test_the_top_directions_are_taken_out_whole(how, count):
    gram, q = turned([5.0, 3.0, 1.5, 0.5])
    made = curvature.factors({"w": gram, "b": None}, **how)
    factor = made["w"]
    assert made["b"] is None and factor.strength.tolist() == [1.0] * count
    np.testing.assert_allclose(factor.basis @ factor.basis.T, q[:, :count] @ q[:, :count].T, atol=1e-5)
    assert curvature.shares(made) == {"w": count / 4}


def test_alpha_takes_of_every_direction_by_its_eigenvalue():
    gram, q = turned([5.0, 3.0, 1.5, 0.5])
    factor = curvature.factors({"w": gram}, alpha=2.0)["w"]
    np.testing.assert_allclose(factor.strength, [1 - 1 / (1 + 2 * v / 2.5) for v in (5, 3, 1.5, 0.5)], atol=1e-6)
    x = RNG.normal(size=(3, 4))
    expected = x @ np.linalg.inv(np.eye(4) + 2.0 * np.asarray(gram, np.float64) / 2.5)
    np.testing.assert_allclose(curvature.keep_out(factor, jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_layers_of_other_counts_act_as_if_they_had_their_own():
    grams = [turned(values, seed)[0] for seed, values in enumerate(([9.0, 0.4, 0.3, 0.3], [3.0, 3.0, 3.0, 1.0]))]
    factor = curvature.factors({"w": jnp.stack(grams)}, share=0.85)["w"]
    assert factor.strength.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    x = jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)
    for layer, gram in enumerate(grams):
        own = curvature.factors({"w": gram}, share=0.85)["w"]
        np.testing.assert_allclose(curvature.keep_out(factor, x)[layer], curvature.keep_out(own, x[layer]), atol=1e-5)
    assert curvature.shares({"w": factor}) == {"w": 0.5}


@pytest.mark.parametrize(
    "how", [{}, {"share": 0.5, "alpha": 1.0}, {"share": 1.0}, {"share": -0.1}, {"fraction": 1.5}, {"alpha": -1.0}, {"alpha": float("nan")}]
)  # fmt: skip
def test_exactly_one_rule_in_its_range(how):
    with pytest.raises(InputError, match="expected one of share and fraction"):
        curvature.factors({"w": jnp.eye(2)}, **how)


@pytest.mark.parametrize("how", [{"share": 0.5}, {"fraction": 0.5}, {"alpha": 1.0}])
def test_a_gram_of_zeros_protects_nothing(how):
    with pytest.raises(InputError, match="something to keep in every layer of 'a/w', found a Gram of zeros"):
        curvature.factors({"a": {"w": jnp.stack([jnp.eye(3), jnp.zeros((3, 3))])}}, **how)
