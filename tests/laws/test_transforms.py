"""Law 4 on optax level: the mask acts, on everything an optimizer carries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmu_jax import InputError, optimizers, transforms, trees
from mmu_jax.optimizers import Pace

RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(6, 7)), jnp.float32), "b": jnp.asarray(RNG.normal(size=9), jnp.float32)}
MASK = jax.tree.map(lambda p: jnp.asarray(RNG.random(p.shape) < 0.5), PARAMS)
INNER = {
    "adamw with decay and clip": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.2)
    ),
    "sgd with momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "our adam": lambda: optimizers.adam(0.1, weight_decay=0.1),
    "official adam": lambda: optimizers.adam(0.1, arithmetic="official", eps=1e-6),
}


def grads(step):
    return jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(step).normal(size=p.shape), jnp.float32), PARAMS)


def steps(tx, n=4, **extra):
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(n):
        updates, state = tx.update(grads(step), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def changed(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a) != np.asarray(b), before, after)


@pytest.mark.parametrize("name", INNER)
def test_outside_is_bit_identical_and_inside_moves(name):
    after, _ = steps(transforms.masked(INNER[name](), MASK))
    jax.tree.map(lambda c, m: np.testing.assert_array_equal(c, np.asarray(m)), changed(PARAMS, after), MASK)


@pytest.mark.parametrize("name", INNER)
def test_all_ones_is_no_mask_bit_for_bit(name):
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
    a, b = steps(transforms.masked(INNER[name](), ones)), steps(optax.with_extra_args_support(INNER[name]()))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", INNER)
def test_all_zeros_is_no_step_and_leaves_moments_as_they_were(name):
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), PARAMS)
    tx = transforms.masked(INNER[name]())
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
    _, state = steps(tx, 2, mask=ones)
    updates, later = tx.update(grads(9), state, PARAMS, mask=zeros)
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates))
    for (_, old), (leaf, new) in zip(trees.flatten(state).items(), trees.flatten(later).items(), strict=True):
        if "count" not in leaf:
            np.testing.assert_array_equal(np.asarray(old), np.asarray(new))


def test_momentum_of_other_steps_moves_nothing_outside():
    """Steps masked differently share one state; each moves only its own entries, moments included."""
    tx = transforms.masked(INNER["adamw with decay and clip"]())
    other = jax.tree.map(jnp.logical_not, MASK)
    params, state = PARAMS, tx.init(PARAMS)
    update = jax.jit(tx.update)
    for step in range(5):
        mask = MASK if step % 2 else other
        updates, new_state = update(grads(step), state, params, mask=mask)
        moved = changed(params, optax.apply_updates(params, updates))
        jax.tree.map(lambda c, m: np.testing.assert_array_equal(c, np.asarray(m)), moved, mask)
        before, after = trees.flatten(state), trees.flatten(new_state)
        for name in before:
            if name.endswith(("/a", "/b")):
                outside = ~np.asarray(mask[name[-1]])
                np.testing.assert_array_equal(np.asarray(before[name])[outside], np.asarray(after[name])[outside])
        params, state = optax.apply_updates(params, updates), new_state


def test_masking_gradients_alone_leaks_and_says_so():
    inner = INNER["adamw with decay and clip"]()
    after, _ = steps(transforms.masked(inner, MASK, gradients_only=True))
    moved = changed(PARAMS, after)
    assert all((c & ~np.asarray(m)).any() for c, m in zip(jax.tree.leaves(moved), jax.tree.leaves(MASK), strict=True))


def test_the_clip_sees_only_what_the_mask_lets_in():
    tx = transforms.masked(optax.clip_by_global_norm(1.0), MASK)
    updates, _ = tx.update(jax.tree.map(lambda g: 100 * g, grads(0)), tx.init(PARAMS))
    assert float(optax.global_norm(updates)) == pytest.approx(1.0, rel=1e-6)


def test_a_mask_is_required_and_must_fit():
    tx = transforms.masked(optax.sgd(0.1))
    with pytest.raises(InputError, match="expected a mask, found none"):
        tx.update(grads(0), tx.init(PARAMS), PARAMS)
    with pytest.raises(InputError, match="the mask does not fit"):
        tx.update(grads(0), tx.init(PARAMS), PARAMS, mask={"a": MASK["a"]})
    with pytest.raises(InputError, match="dtype"):
        tx.update(grads(0), tx.init(PARAMS), PARAMS, mask=PARAMS)


def test_a_mask_given_to_the_update_replaces_the_fixed_one():
    tx = transforms.masked(optax.sgd(0.1), MASK)
    other = jax.tree.map(jnp.logical_not, MASK)
    updates, _ = tx.update(grads(0), tx.init(PARAMS), PARAMS, mask=other)
    jax.tree.map(lambda u, m: np.testing.assert_array_equal(np.asarray(u) != 0, np.asarray(m)), updates, other)


def test_frozen_leaves_of_none_pass_through():
    part, _ = trees.split(PARAMS, "a")
    tx = transforms.masked(optax.adam(0.1), trees.part(MASK, part))
    updates, state = tx.update(trees.part(grads(0), part), tx.init(part), part)
    assert updates["b"] is None and trees.size(state[0].mu) == 42


@pytest.mark.parametrize("arithmetic", ["optax", "official"])
def test_adam_is_its_equation(arithmetic):
    """That of the paper, or that of the old ``transformers.AdamW``."""
    rate, b1, b2, eps = 0.1, 0.9, 0.999, 1e-2
    after, _ = steps(optimizers.adam(rate, arithmetic=arithmetic, eps=eps), 5)
    for name, p in PARAMS.items():
        x, m, v = np.asarray(p, np.float64), 0.0, 0.0
        for t in range(1, 6):
            g = np.asarray(grads(t - 1)[name], np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            first, second = 1 - b1**t, 1 - b2**t
            late = m / first / (np.sqrt(v / second) + eps)
            x = x - rate * (late if arithmetic == "optax" else np.sqrt(second) / first * m / (np.sqrt(v) + eps))
        np.testing.assert_allclose(np.asarray(after[name]), x, atol=1e-6)  # five float32 steps of 0.1


def test_adam_decays_nothing_unless_asked():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for decay, moves in ((0.0, False), (0.1, True)):
        tx = optimizers.adam(0.1, weight_decay=decay)
        updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
        assert bool(jnp.abs(updates["a"]).max() > 0) == moves
    with pytest.raises(InputError, match="arithmetic"):
        optimizers.adam(0.1, arithmetic="torch")
    for b in ({"b1": 1.0}, {"b2": -0.1}):
        with pytest.raises(InputError, match="b1 and b2 from 0 to below 1"):
            optimizers.adam(0.1, **b)
    updates, _ = (tx := optimizers.adam(0.1, b1=0.0, b2=0.0)).update(
        {"w": jnp.array([3.0, -2.0])}, tx.init({"w": jnp.zeros(2)})
    )
    np.testing.assert_allclose(updates["w"], [-0.1, 0.1], rtol=1e-6)  # no memory: the sign


def test_schedules():
    assert [float(optimizers.learning_rate(Pace(2.0))(s)) for s in (0, 9)] == [2.0, 2.0]
    linear = optimizers.learning_rate(Pace(2.0, rise=2, steps=10), "linear")
    assert [round(float(linear(s)), 3) for s in (0, 1, 2, 6, 10)] == [0.0, 1.0, 2.0, 1.0, 0.0]
    cosine = optimizers.learning_rate(Pace(2.0, steps=10), "cosine")
    assert [round(float(cosine(s)), 3) for s in (0, 5, 10)] == [2.0, 1.0, 0.0]
    with pytest.raises(InputError, match="schedule"):
        optimizers.learning_rate(Pace(), "step")


@pytest.mark.parametrize(
    "odd", [jnp.arange(3), jax.random.key(0), jnp.ones(2, bool), jax.nn.relu], ids=["int", "key", "bool", "function"]
)
def test_params_that_cannot_move_are_refused_by_name(odd):
    with pytest.raises(InputError, match="expected .*, found .* at 'odd'"):
        transforms.masked(optax.adam(0.1), MASK).init(PARAMS | {"odd": odd})


def test_minus_zero_outside_the_mask_keeps_its_sign():
    params = {"w": jnp.array([-0.0, 1.0])}
    tx = transforms.masked(optax.sgd(0.1), {"w": jnp.array([False, True])})
    updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    after = optax.apply_updates(params, updates)["w"]
    assert np.signbit(after).tolist() == [True, False] and float(after[1]) == pytest.approx(0.9)


def test_complex_params_move_inside_only():
    params, mask = {"w": jnp.array([1 + 1j, 2 - 1j])}, {"w": jnp.array([True, False])}
    tx = transforms.masked(optax.adamw(0.1), mask)
    updates, _ = tx.update({"w": jnp.array([1j, 1j])}, tx.init(params), params)
    assert (np.asarray(updates["w"]) != 0).tolist() == [True, False]


@pytest.mark.parametrize("wrap", [lambda m: m, nnx.to_pure_dict], ids=["state", "dict"])
def test_an_nnx_optimizer_takes_a_mask_by_name(wrap):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    mask = jax.tree.map(lambda p: jnp.asarray(RNG.random(p.shape) < 0.5), before)
    optimizer = nnx.Optimizer(model, transforms.masked(optax.adamw(0.1), wrap(mask)), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(lambda m: jnp.square(m(jnp.ones((1, 3)))).sum())(model))
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), before, nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, moved, jax.tree.map(np.asarray, mask))


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_meshes_of_either_kind_of_axes_give_the_same_step(axes):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axes,) * 2)
    where = {"a": NamedSharding(mesh, PartitionSpec("data")), "b": NamedSharding(mesh, PartitionSpec())}
    expected, _ = steps(transforms.masked(INNER["adamw with decay and clip"](), MASK), 1)
    tx = transforms.masked(INNER["adamw with decay and clip"](), jax.device_put(MASK, where))
    params = jax.device_put(PARAMS, where)
    updates, _ = jax.jit(tx.update)(jax.device_put(grads(0), where), tx.init(params), params)
    got = optax.apply_updates(params, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-6), got, expected)


def test_inside_shard_map_each_device_masks_its_part():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    tx, spec = transforms.masked(optax.adamw(0.1)), PartitionSpec("data")
    tree, mask = {"a": PARAMS["a"]}, {"a": MASK["a"]}
    placed = jax.device_put((tree, mask), NamedSharding(mesh, spec))

    def step(params, mask):
        return tx.update({"a": params["a"] + 1}, tx.init(params), params, mask=mask)[0]

    got = jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(*placed)
    np.testing.assert_allclose(got["a"], step(tree, mask)["a"], rtol=1e-6)


def test_an_array_alone_is_a_tree():
    tx = transforms.masked(optax.adamw(0.1), MASK["a"])
    updates, _ = tx.update(grads(0)["a"], tx.init(PARAMS["a"]), PARAMS["a"])
    np.testing.assert_array_equal(np.asarray(updates) != 0, np.asarray(MASK["a"]))


@pytest.mark.parametrize("inner", [optax.adam, {"w": jnp.array([True])}, None, 1e-3])
def test_what_is_no_transformation_is_named(inner):
    with pytest.raises(InputError, match="expected an optax transformation first"):
        transforms.masked(inner, {"w": jnp.array([True])})


def test_an_optimizer_of_params_of_its_own_is_refused_for_plain_ones():
    tx = transforms.masked(optax.lookahead(optax.adam(0.1), 5, 0.5), {"w": jnp.array([True])})
    with pytest.raises(InputError, match="steps from gradients and params.*fast"):
        tx.init({"w": jnp.ones(1)})


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"arithmetic": "official", "eps": 1e-6}, {"clip": 0.5}])
def test_a_mask_in_adam_is_what_masked_makes_of_any_optimizer(options):
    """Not to be told apart from the general way, which sees of the optimizer no more than that it is one."""
    ours = optimizers.adam(optimizers.learning_rate(Pace(0.1, steps=4), "linear"), **options)
    hidden = optax.GradientTransformationExtraArgs(ours.init, ours.update)
    (a, state), (b, other) = (steps(transforms.masked(tx, MASK), 4) for tx in (ours, hidden))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), (a, state), (b, other))
    jax.tree.map(lambda c, m: np.testing.assert_array_equal(c, np.asarray(m)), changed(PARAMS, a), MASK)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_our_adam_is_a_chain_of_optax(decay, clip):
    ours, _ = steps(optimizers.adam(0.1, clip=clip, weight_decay=decay), 5)
    theirs, _ = steps(optax.chain(optax.clip_by_global_norm(clip), optax.adamw(0.1, weight_decay=decay)), 5)
    # Steps of 0.1, of which optax's carry the error of its bias correction.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, theirs)


def test_adam_under_a_mask_holds_no_copy_of_moments_or_params():
    """What the compiler may put beside arguments and results: the masked gradient whose norm is taken, and no more."""
    params = {str(i): jnp.zeros((256, 256)) for i in range(4)}
    mask, tx = jax.tree.map(lambda p: p == 0, params), transforms.masked(optimizers.adam(0.1, clip=1.0))

    def step(params, state, grads, mask):
        updates, state = tx.update(grads, state, params, mask=mask)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, mask).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * sum(p.nbytes for p in params.values())
