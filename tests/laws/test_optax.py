"""``transforms.masked`` around everything that optax has: the table in its docstring, row by row."""

import inspect
import re
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mmu_jax import InputError, transforms

RNG = np.random.default_rng(0)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(2, 5)), jnp.float32),
}
MASK = jax.tree.map(lambda p: jnp.asarray(RNG.random(p.shape) < 0.5), PARAMS)
ONES = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
ZEROS = jax.tree.map(jnp.zeros_like, ONES)
TABLE = re.search(r"=\n +works(.*) refused(.*?)=", transforms.masked.__doc__, re.DOTALL)
WORKS, REFUSED = TABLE[1].split(), TABLE[2].split()


def adam():
    return optax.adam(0.1)


def half(step):
    return 0.5 / (1 + step)


FACTORIES = {  # what is not made by its defaults or by a learning rate
    "MultiSteps": lambda f: f(optax.adamw(0.1, weight_decay=0.1), 2).gradient_transformation(),
    "adafactor": lambda f: f(0.1, min_dim_size_to_factor=2),
    "add_noise": lambda f: f(0.1, 0.5, key=0),
    "apply_if_finite": lambda f: f(adam(), 3),
    "chain": lambda f: f(
        optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.2), optax.clip_by_global_norm(0.1)
    ),
    "conditionally_mask": lambda f: f(adam(), lambda step: step < 2),
    "conditionally_transform": lambda f: f(adam(), lambda step: step < 2),
    "differentially_private_aggregate": lambda f: f(1.0, 0.1, key=0),
    "dpsgd": lambda f: f(0.1, 1.0, 0.1, 0),
    "flatten": lambda f: f(adam()),
    "freeze": lambda f: f({"a": True, "b": False}),
    "inject_hyperparams": lambda f: f(optax.adamw)(learning_rate=half),
    "inject_stateful_hyperparams": lambda f: f(optax.adamw)(learning_rate=half),
    "lookahead": lambda f: f(adam(), 2, 0.5),
    "masked": lambda f: f(optax.adamw(0.1), {"a": True, "b": False}),
    "measure_with_ema": lambda f: f(optax.global_norm, 0.9),
    "mechanize": lambda f: f(adam()),
    "monitor": lambda f: f({"norm": optax.global_norm, "mean": optax.measure_with_ema(optax.global_norm, 0.9)}),
    "multi_transform": lambda f: f({"x": adam(), "y": optax.sgd(0.1, 0.9)}, {"a": "x", "b": "y"}),
    "named_chain": lambda f: f(("clip", optax.clip_by_global_norm(0.5)), ("adam", adam())),
    "noisy_sgd": lambda f: f(0.1, key=0),
    "partition": lambda f: f({"x": adam(), "y": optax.set_to_zero()}, {"a": "x", "b": "y"}),
    "scale_by_factored_rms": lambda f: f(min_dim_size_to_factor=2),
    "sam": lambda f: f(optax.sgd(0.1), optax.sgd(0.01)),
    "scale_by_backtracking_linesearch": lambda f: f(5),
    "scale_by_muon": lambda f: f(
        weight_dimension_numbers=jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), PARAMS)
    ),
    "scale_by_schedule": lambda f: f(half),
    "scale_by_zoom_linesearch": lambda f: f(5),
    "schedule_free": lambda f: f(optax.adamw(0.1, b1=0.0), 0.1),
    "selective_transform": lambda f: f(adam(), freeze_mask={"a": True, "b": False}),
    "snapshot": lambda f: f("norm", lambda updates, **_: optax.global_norm(updates)),
    "split_real_and_imaginary": lambda f: f(adam()),
    "stateless": lambda f: f(lambda updates, params: jax.tree.map(lambda u, p: u + p, updates, params)),
    "stateless_with_tree_map": lambda f: f(lambda u, p: u + p),
    "with_extra_args_support": lambda f: f(adam()),
}


def public():
    """Name -> callable of ``optax`` and ``optax.contrib`` that makes a transformation."""
    found = {"MultiSteps": optax.MultiSteps}
    for module in (optax, contrib):
        for name, value in vars(module).items():
            if (
                name.startswith("_")
                or not callable(value)
                or inspect.isclass(value)
                or isinstance(value, types.GenericAlias)
            ):
                continue
            says = "GradientTransformation" in str(inspect.signature(value).return_annotation)
            if (says or name in FACTORIES or made(value)) and "_from_" not in name:
                found[name] = value
    return found


def made(value):
    """``value()`` or ``value(0.1)`` where that is a transformation."""
    for arguments in ((), (0.1,)):
        try:
            with warnings.catch_warnings(action="ignore"):
                transformation = value(*arguments)
        except (TypeError, ValueError, AttributeError):
            continue
        if isinstance(transformation, optax.GradientTransformation):
            return transformation
    return None


PUBLIC = public()


def make(name):
    return FACTORIES[name](PUBLIC[name]) if name in FACTORIES else made(PUBLIC[name])


def grads(step):
    return jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(step).normal(size=p.shape), jnp.float32), PARAMS)


def walk(name, tx, masks, params=PARAMS, given=grads):
    """Params after a step with each of the masks, op by op: compiled programs may round products and sums in one."""
    value = {"value": 1.0} if name in ("polyak_sgd", "scale_by_polyak", "reduce_on_plateau") else {}
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    for step, mask in enumerate(masks):
        extra = {} if mask is None else {"mask": mask}
        updates, state = tx.update(given(step), state, params, **value, **extra)
        params = optax.apply_updates(params, updates)
    return params


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.int32), tree)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def outside(mask, tree):
    return jax.tree.map(lambda m, x: np.where(np.asarray(m), 0, x), mask, bits(tree))


def test_the_table_has_everything_that_optax_has():
    assert sorted(WORKS + REFUSED) == sorted(set(WORKS + REFUSED)), "a name stands twice"
    assert set(PUBLIC) == set(WORKS + REFUSED), "decide in transforms.masked, by trying, what works and what is refused"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WORKS)
def test_what_works_obeys_the_law(name):
    tx = transforms.masked(make(name))
    after, plain = walk(name, tx, [MASK] * 3), walk(name, make(name), [None] * 3)
    same(outside(MASK, after), outside(MASK, PARAMS))
    moved = jax.tree.map(lambda p, q: np.asarray(p != q), PARAMS, plain)
    assert name == "set_to_zero" or any(x.any() for x in jax.tree.leaves(moved))
    same(jax.tree.map(lambda p, q: np.asarray(p != q), PARAMS, after), jax.tree.map(lambda x, m: x & m, moved, MASK))
    same(bits(walk(name, tx, [ONES] * 3)), bits(plain))
    same(bits(walk(name, tx, [ZEROS] * 2)), bits(PARAMS))

    # Neither gradients nor params outside the mask, nor what other steps left there, are felt inside.
    def disturbed(step):
        return jax.tree.map(lambda m, g: jnp.where(m, g, 7.0), MASK, grads(step))

    other = jax.tree.map(lambda m, p: jnp.where(m, p, 3 * p + 1), MASK, PARAMS)
    inside = jax.tree.map(jnp.logical_not, MASK)
    same(outside(inside, walk(name, tx, [MASK] * 3, other, disturbed)), outside(inside, after))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_mixes_entries_is_refused_by_name_at_init(name):
    params = optax.LookaheadParams(PARAMS, PARAMS) if name == "lookahead" else PARAMS
    with pytest.raises(
        InputError, match=r"expected an optimizer (that|whose) .* found .*State.* which .*; use one that"
    ) as error:
        transforms.masked(make(name), MASK).init(params)
    assert "\n" not in str(error.value)
