"""Law 11 on optax level and in training: along what is kept nothing moves, whatever an optimizer carries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

from mmu_jax import InputError, curvature, hf, lora, models, optimizers, sharding, transforms, trees
from mmu_jax.curvature import Factor
from toys import SPEC, basis, make_batch, random_factors, run, same, streams
from twins import QWEN_ROWS, qwen_batch

RNG = np.random.default_rng(0)
SHAPES = {"w": (6, 8), "layers": (3, 5, 8), "norm": (9,)}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
FACTORS = {
    "w": Factor(jnp.asarray(basis(RNG, width=8, count=3)), jnp.ones(3)),
    "layers": Factor(jnp.asarray(basis(RNG, 3, width=8, count=4)), jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0.0]])),
    "norm": None,
}  # fmt: skip
INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "adam": lambda: optax.adam(0.1),
    "adamw with decay": lambda: optax.adamw(0.1, weight_decay=0.3),
    "sgd with momentum and decay": lambda: optax.chain(
        optax.add_decayed_weights(0.3), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "adam with clip": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "official adam": lambda: optimizers.adam(0.1, arithmetic="official", eps=1e-6, weight_decay=0.3),
}


def grads(step, params=None):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS if params is None else params)


def steps(tx, n=4, params=PARAMS, jit=False, **extra):
    state, update = tx.init(params), jax.jit(tx.update) if jit else tx.update
    for step in range(n):
        updates, state = update(grads(step, params), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def along(name, x, factors=FACTORS):
    """What of ``x`` lies in the directions that are taken out whole, per direction."""
    factor = factors[name]
    return np.matmul(np.asarray(x), np.asarray(factor.basis)) * np.asarray(factor.strength)[..., None, :]


def by_hand(updates, factors=FACTORS):
    """``c (u - ((u U) * strength) U^T)`` in float64, ``c`` the one factor that gives the norm back; zero elsewhere."""
    free, reached = {}, {}
    for name, u in updates.items():
        if factors[name] is None:
            continue
        u, basis_of = np.asarray(u, np.float64), np.asarray(factors[name].basis, np.float64)
        taken = np.matmul(u, basis_of) * np.asarray(factors[name].strength, np.float64)[..., None, :]
        free[name], reached[name] = u - np.matmul(taken, basis_of.swapaxes(-1, -2)), u
    norms = [np.sqrt(sum((x**2).sum() for x in tree.values())) for tree in (reached, free)]
    return {
        name: free[name] * norms[0] / norms[1] if name in free else np.zeros(u.shape) for name, u in updates.items()
    }


@pytest.mark.parametrize("name", INNER)
def test_along_what_is_kept_nothing_moves_and_all_else_does(name):
    after, _ = steps(transforms.projected(INNER[name](), FACTORS), 8)
    for leaf in ("w", "layers"):
        moved = np.asarray(after[leaf]) - np.asarray(PARAMS[leaf])
        assert np.abs(along(leaf, moved)).max() < 1e-6 * np.abs(moved).max() * 8  # a rounding of each of 8 steps
        assert np.abs(moved).min() > 0
    np.testing.assert_array_equal(after["norm"], PARAMS["norm"])


@pytest.mark.parametrize("name", INNER)
def test_an_update_is_that_of_the_inner_but_for_the_directions_and_one_factor(name):
    """Also: its moments are those of the inner, which sees whole gradients."""
    inner = optax.with_extra_args_support(INNER[name]())
    tx = transforms.projected(inner, FACTORS)
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        wanted, expected = inner.update(grads(step), state, params)
        updates, state = tx.update(grads(step), state, params)
        same(state, expected)
        for leaf, u in by_hand(wanted).items():
            np.testing.assert_allclose(np.asarray(updates[leaf]), u, atol=2e-6 * np.abs(u).max())
        norms = [float(optax.global_norm([tree[leaf] for leaf in ("w", "layers")])) for tree in (wanted, updates)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-6)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", INNER)
def test_no_strength_is_no_projection_bit_for_bit(name):
    none = jax.tree.map(lambda f: f.replace(strength=0 * f.strength), FACTORS, is_leaf=curvature.is_factor)
    got, _ = steps(transforms.projected(INNER[name](), none))
    expected, _ = steps(optax.with_extra_args_support(INNER[name]()))
    same(got, expected | {"norm": PARAMS["norm"]})


def test_alpha_multiplies_by_the_damped_inverse():
    rng = np.random.default_rng(1)
    half = {name: rng.normal(size=(*SHAPES[name][:-2], 8, 8)).astype(np.float32) for name in ("w", "layers")}
    gram = {name: jnp.asarray(np.matmul(h, h.swapaxes(-1, -2))) for name, h in half.items()} | {"norm": None}
    tx = transforms.projected(optax.sgd(1.0), curvature.factors(gram, alpha=3.0))
    updates, _ = tx.update(grads(0), tx.init(PARAMS), PARAMS)
    expected = {}
    for name in half:
        c = np.asarray(gram[name], np.float64)
        mean = np.trace(c, axis1=-2, axis2=-1)[..., None, None] / 8
        expected[name] = -np.matmul(np.asarray(grads(0)[name]), np.linalg.inv(np.eye(8) + 3.0 * c / mean))
    ratio = [np.asarray(updates[name]) / u for name, u in expected.items()]
    common = ratio[0].flat[0]
    for r in ratio:
        np.testing.assert_allclose(r, common, rtol=1e-3)  # of entries that may be small
    assert common > 1


def test_a_leaf_without_a_factor_does_not_move_by_decay_either():
    tx = transforms.projected(optax.adamw(0.1, weight_decay=0.5), FACTORS | {"w": None})
    after, _ = steps(tx, params=PARAMS | {"norm": -0.0 * PARAMS["norm"]})
    np.testing.assert_array_equal(after["w"], PARAMS["w"])
    assert np.signbit(after["norm"]).tolist() == np.signbit(-0.0 * PARAMS["norm"]).tolist()


def test_factors_given_to_the_update_replace_the_fixed_ones():
    other = FACTORS | {"w": Factor(jnp.eye(8)[:, :2], jnp.ones(2))}
    for tx in (transforms.projected(optax.adam(0.1)), transforms.projected(optax.adam(0.1), FACTORS)):
        after, _ = steps(tx, factors=other)
        moved = np.asarray(after["w"]) != np.asarray(PARAMS["w"])
        assert moved[:, 2:].all() and not moved[:, :2].any()


STRANGERS = {
    "of no leaf": (FACTORS | {"other": FACTORS["w"]}, "other is not a leaf of the model"),
    "of another width": (FACTORS | {"w": Factor(jnp.eye(7), jnp.ones(7))}, r"w has inputs \(7,\), expected \(8,\)"),
    "of fewer layers": (FACTORS | {"layers": FACTORS["w"]}, r"layers has inputs \(8,\), expected \(3, 8\)"),
    "of no matrix": (
        FACTORS | {"norm": Factor(jnp.eye(9), jnp.ones(9))},
        r"norm of shape \(9,\) has Factor, expected a matrix",
    ),
    "Grams": (FACTORS | {"w": jnp.eye(8)}, r"w of shape \(6, 8\) has ArrayImpl, expected a matrix with a Factor"),
    "strengths of another": (
        FACTORS | {"w": Factor(jnp.eye(8), jnp.ones(1))},
        r"w has strengths \(1,\), expected \(8,\)",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_factors_that_do_not_fit_are_named(name):
    factors, said = STRANGERS[name]
    tx = transforms.projected(optax.adam(0.1), factors)
    with pytest.raises(InputError, match=f"the factors do not fit this model, 1 leaves differ: {said}"):
        tx.update(grads(0), tx.init(PARAMS), PARAMS)


def test_factors_are_required_and_a_transformation_too():
    tx = transforms.projected(optax.sgd(0.1))
    with pytest.raises(InputError, match="expected factors, found none"):
        tx.update(grads(0), tx.init(PARAMS), PARAMS)
    for inner in (optax.adam, None, 1e-3):
        with pytest.raises(InputError, match="expected an optax transformation first"):
            transforms.projected(inner, FACTORS)


@pytest.mark.parametrize("rows", [False, True], ids=["entries", "rows"])
@pytest.mark.parametrize("name", INNER)
def test_a_mask_around_it_holds_and_one_of_rows_leaves_what_is_kept_alone_too(name, rows):
    def keep(p):
        chosen = RNG.random((*p.shape[:-1], 1) if rows else p.shape) < 0.5
        return jnp.asarray(np.broadcast_to(chosen, p.shape))

    mask = jax.tree.map(keep, PARAMS)
    after, _ = steps(transforms.masked(transforms.projected(INNER[name](), FACTORS), mask))
    for leaf, m in mask.items():
        moved = np.asarray(after[leaf]) - np.asarray(PARAMS[leaf])
        np.testing.assert_array_equal(moved != 0, np.asarray(m) & (leaf != "norm"))
        if leaf != "norm" and rows:
            assert np.abs(along(leaf, moved)).max() < 4e-6 * np.abs(moved).max()


def test_where_all_directions_are_kept_nothing_moves():
    """What rounding leaves of an update is not blown up to its norm."""
    everything = {"w": Factor(jnp.asarray(basis(RNG, width=8, count=8)), jnp.ones(8))}
    params = {"w": PARAMS["w"]}
    after, _ = steps(transforms.projected(optax.adamw(0.1), everything), params=params)
    np.testing.assert_array_equal(after["w"], params["w"])
    beside, _ = steps(transforms.projected(optax.adamw(0.1), FACTORS | everything))
    np.testing.assert_allclose(beside["w"], params["w"], atol=1e-5)
    assert np.abs(np.asarray(beside["layers"] - PARAMS["layers"])).max() > 0.01
    for zero in (0.0, -0.0):
        tx = transforms.projected(optax.sgd(0.1), everything)
        updates, _ = tx.update({"w": jnp.full((6, 8), zero)}, tx.init(params), params)
        assert not np.asarray(updates["w"]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_params_of_few_digits_keep_their_dtype_and_their_norm(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = transforms.projected(optax.sgd(1.0), FACTORS)
    large = jax.tree.map(lambda g: 100 * g, grads(0, params))  # whose squares float16 has no room for
    updates, _ = tx.update(large, tx.init(params), params)
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    for leaf, u in by_hand(jax.tree.map(lambda g: -np.asarray(g, np.float64), large)).items():
        np.testing.assert_allclose(np.asarray(updates[leaf], np.float64), u, atol=0.008 * np.abs(u).max())


@pytest.mark.parametrize(
    "wrap", [FrozenDict, lambda tree: nnx.State(jax.tree.map(nnx.Param, tree))], ids=["linen", "nnx"]
)
def test_trees_of_flax_are_trees(wrap):
    params = wrap(PARAMS)
    expected, _ = steps(transforms.projected(optax.adam(0.1), FACTORS))
    tx = transforms.projected(optax.adam(0.1), FACTORS)
    state = tx.init(params)
    for step in range(4):
        updates, state = tx.update(wrap(grads(step)), state, params)
        params = optax.apply_updates(params, updates)
    assert jax.tree.structure(params) == jax.tree.structure(wrap(PARAMS))
    same(trees.flatten(params), trees.flatten(expected))


def test_a_frozen_part_of_none_passes_through():
    part, _ = trees.split(PARAMS, "w")
    tx = transforms.projected(optax.adam(0.1), trees.part(FACTORS, part))
    updates, state = tx.update(trees.part(grads(0), part), tx.init(part), part)
    assert updates["norm"] is None and updates["layers"] is None and trees.size(state[0].mu) == 48


def test_every_mesh_takes_the_same_step(mesh):
    specs = {"w": PartitionSpec(None, "model"), "layers": PartitionSpec(None, None, "data"), "norm": PartitionSpec()}
    where = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    tx = transforms.projected(INNER["adam with clip"](), FACTORS)
    params = jax.device_put(PARAMS, where)
    updates, _ = jax.jit(tx.update)(jax.device_put(grads(0), where), tx.init(params), params)
    expected, _ = tx.update(grads(0), tx.init(PARAMS), PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=1e-6), updates, expected)


# ---- in training: of the params themselves, and of low rank


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def family(request, llava, whole):
    """(folder, model, streams) of both."""
    if request.param == "llava":
        return llava[0], llava[2], None
    folder, data = whole["qwen2_vl"], streams()
    batch, _ = qwen_batch(folder, QWEN_ROWS["rows of other sizes"])
    for stream in data.values():
        stream.batch = lambda step: batch
    return folder, models.Model(hf.read_config(folder)), data


def updates_of(state, factors):
    """Leaf name -> merged update of the projected adapters."""
    found, kept = state.params["projected"], curvature.by_name(factors)
    adapters = trees.flatten(found, is_leaf=lambda x: isinstance(x, lora.Adapter))
    return {n: lora.product(lora.kept_out(a, kept[n]), SPEC.scale) for n, a in adapters.items() if n in kept}


def check_kept(updates, factors):
    kept = curvature.by_name(factors)
    for name, update in updates.items():
        size = np.linalg.norm(np.asarray(update), axis=(-2, -1), keepdims=True)
        assert (size > 0).all(), name
        assert (np.abs(along(name, update, kept)) < 1e-5 * size).all(), name


def test_a_trained_merged_update_leaves_what_is_kept_alone(family):
    folder, model, data = family
    params = hf.load(folder, model)
    factors = random_factors(model, params)
    state = run(model, params, "projected", data=data, factors=factors, trainable=SPEC, iterations=5)
    updates = updates_of(state, factors)
    assert len(updates) == sum(map(bool, jax.tree.leaves(trees.select(params, SPEC.targets)))) >= 3
    check_kept(updates, factors)


def test_training_whole_params_leaves_what_is_kept_alone(family):
    folder, model, data = family
    params = hf.load(folder, model)
    factors = random_factors(model, params)
    options = dict(factors=factors, iterations=5, adam={"weight_decay": 0.1}, clip=0.1)
    state = run(model, params, "projected", data=data, **options)
    moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), state.params, params)
    moved, kept = trees.flatten(moved), curvature.by_name(factors)
    for name, change in moved.items():
        assert bool(np.abs(change).max() > 0) == (name in kept), name
        if name in kept:  # five sums, each rounded to a float32 of the weight
            far = np.abs(np.asarray(trees.flatten(params)[name])).max() * np.sqrt(change.shape[-1])
            assert np.abs(along(name, change, kept)).max() < 5 * 6e-8 * far < 0.01 * np.abs(change).max(), name


def test_what_is_written_is_what_was_trained(llava, tmp_path):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    factors = random_factors(model, params)
    left_out = "language_model/layers/self_attn/q_proj/weight"
    factors = trees.map_named(
        lambda name, p: None if name == left_out else curvature.by_name(factors).get(name), params
    )
    state = run(model, params, "projected", factors=factors, trainable=SPEC, iterations=4)
    changed = hf.rewrite(model, folder, tmp_path / "out", lora.merge(SPEC, state.params, factors=factors))
    after = hf.load(tmp_path / "out", model)
    forward = jax.jit(model.forward)
    adapted = lora.adapt(SPEC, params, state.params, factors=factors)
    expected, found, before = (np.asarray(forward(tree, batch)) for tree in (adapted, after, params))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max() < np.abs(before - expected).max()
    assert left_out not in changed and changed[left_out.replace("q_proj", "o_proj")] > 0
    only = lora.merge(SPEC, {"projected": state.params["projected"]}, factors=factors)
    assert only(left_out, 0, np.ones((32, 32), np.float32)) is None
    update = updates_of(state, factors)["language_model/layers/self_attn/o_proj/weight"]
    written = only("language_model/layers/self_attn/o_proj/weight", 1, np.zeros((32, 32), np.float32))
    np.testing.assert_allclose(written, np.asarray(update[1]), atol=1e-6 * np.abs(update).max())


def after_steps(family, mesh, path):
    folder, model, data = family
    params = hf.load(folder, model, mesh)
    made = random_factors(model, params)
    curvature.save(path, made, params)
    factors = curvature.load(path, params)
    # A large eps keeps Adam from turning rounding noise around zero gradients into full steps.
    options = dict(data=data, factors=factors, mesh=mesh, iterations=2, adam={"eps": 1e-3})
    return [run(model, params, "projected", trainable=trainable, **options) for trainable in (None, SPEC)]


@pytest.fixture(scope="module")
def on_one_device(family, tmp_path_factory):
    with jax.default_matmul_precision("highest"):
        return after_steps(family, sharding.make_mesh(1), tmp_path_factory.mktemp("f") / "f")


def test_every_mesh_trains_the_same(family, mesh, on_one_device, tmp_path):
    for state, expected in zip(after_steps(family, mesh, tmp_path / "f"), on_one_device, strict=True):
        for name, leaf in trees.flatten(expected.params).items():
            got = np.asarray(trees.flatten(state.params)[name])
            np.testing.assert_allclose(got, np.asarray(leaf), atol=1e-5, err_msg=name)  # of two steps of 1e-3
