"""What a loss must be to be scored, where it is scored, and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmu_jax import InputError, masks, saliency, trees
from regression import batches, by_hand, loss, params

AUX = {
    "an accuracy": lambda p, b, value: (value, (b["x"] @ p["w"].T > 0).mean()),
    "a correct count": lambda p, b, value: (value, (b["x"] @ p["w"].T > 0).sum()),
    "a dict": lambda p, b, value: (value, {"loss": value}),
    "an array": lambda p, b, value: (value, b["x"]),
    "a string of nothing": lambda p, b, value: (value, None),
    "three numbers": lambda p, b, value: (value, 1.0, 2.0),
    "a bool": lambda p, b, value: (value, value > 0),
    "a loss a row": lambda p, b, value: value * b["x"][:, 0],
    "a list": lambda p, b, value: [value, 1.0],
    "an integer loss": lambda p, b, value: value.astype(jnp.int32),
}


@pytest.mark.parametrize("unit", saliency.UNITS)
@pytest.mark.parametrize("name", AUX)
def test_a_loss_with_aux_is_refused(name, unit):
    def with_aux(p, batch):
        total, count = loss(p, batch)
        return AUX[name](p, batch, total / count)

    with pytest.raises(InputError, match=r"^expected .*, found .*; return the loss alone or \(sum, count\)") as error:
        saliency.scores(with_aux, params(), batches(1), unit=unit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "remat"])
def test_a_count_of_the_batch_is_taken_float_or_int(wrap):
    def counted(p, batch):
        total, count = loss(p, batch)
        return total, count.astype(jnp.int32)

    got, expected = (saliency.scores(wrap(f), params(), batches(1)) for f in (counted, loss))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("unit", saliency.UNITS)
def test_scores_that_are_not_finite_are_an_error_with_leaf_and_set(bad, unit):
    sets = batches(2)
    sets[1]["y"][3, 2] = bad
    with pytest.raises(InputError, match=r"the scores of these batches: expected finite scores, .* \(b, w\)"):
        saliency.scores(loss, params(), sets, unit=unit)
    for forget, preserve, name in ((sets, batches(1), "forget"), (batches(1), sets, "preserve")):
        with pytest.raises(InputError, match=f"the scores of the {name} set: .*w"):
            saliency.difference(loss, params(), forget, preserve, unit=unit)


def test_a_row_without_weight_may_hold_anything():
    sets = batches(1)
    sets[0]["weights"] = np.ones((8, 8), np.float32)
    sets[0]["weights"][6:] = 0
    expected = saliency.scores(loss, params(), sets)
    sets[0]["x"][7] = np.nan
    jax.tree.map(np.testing.assert_array_equal, saliency.scores(loss, params(), sets), expected)


@pytest.mark.parametrize(
    "odd",
    [jnp.arange(3), jnp.ones(2, bool), jnp.ones(2, jnp.complex64), jax.random.key(0)],
    ids=["int", "bool", "complex", "key"],
)
def test_leaves_without_a_gradient_are_refused_by_name_or_left_out(odd):
    def inner(p, batch):
        return loss(p["net"], batch)

    tree = {"net": params(), "odd": odd}
    with pytest.raises(InputError, match="found .* at 'odd'; leave it out with the pattern"):
        saliency.scores(inner, tree, batches(1))
    got = saliency.scores(inner, tree, batches(1), leaves="net/.*")
    assert got["odd"] is None
    mask = masks.fill(masks.top_k(got, 5), tree)
    assert mask["odd"].dtype == bool and mask["odd"].shape == odd.shape and not mask["odd"].any()
    masks.check(mask, tree)


@pytest.mark.parametrize("unit", saliency.UNITS)
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("rows", [("data",), (("data", "model"),), ()], ids=["data", "both", "replicated"])
def test_meshes_of_either_kind_of_axes_give_the_same_scores(unit, axes, rows):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes,) * 2)
    place = {"w": PartitionSpec("model") if rows != (("data", "model"),) else PartitionSpec(), "b": PartitionSpec()}
    placed = jax.device_put(params(), jax.tree.map(lambda s: NamedSharding(mesh, s), place))
    sets = [jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*rows))) for batch in batches(2)]
    got = saliency.scores(scalar_loss, placed, sets, unit=unit, chunk=8)
    for name, expected in by_hand(params(), batches(2), unit, "squared").items():
        np.testing.assert_allclose(np.asarray(got[name]), expected, rtol=1e-5, atol=1e-6)
        assert got[name].sharding.is_equivalent_to(placed[name].sharding, got[name].ndim)


def scalar_loss(p, batch):
    return jnp.square(batch["x"] @ p["w"].T + p["b"] - batch["y"]).mean()


def test_inside_jit_there_are_no_scores_to_judge():
    with pytest.raises(InputError, match=r"call it outside jax\.jit"):
        jax.jit(lambda p: saliency.scores(loss, p, batches(1)))(params())


def test_names_of_an_nnx_state_are_those_of_its_modules():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.drop = nnx.Linear(5, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs, deterministic=True)

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def net(state, batch):
        return jnp.square(nnx.merge(graph, state).linear(batch["x"]) - batch["y"]).mean()

    assert list(trees.flatten(nnx.state(nnx.merge(graph, state), nnx.Param))) == ["linear/bias", "linear/kernel"]
    got = saliency.scores(net, state, batches(1), leaves="linear/kernel")
    mask = masks.fill(masks.top_k(got, 7), state)
    masks.check(mask, state)
    assert masks.coverage(mask)["linear"] == {"selected": 7, "total": 48, "density": 7 / 48}


def test_a_count_below_one_is_a_count():
    def fractional(size):
        return lambda p, batch: tuple(size * part for part in loss(p, batch))

    whole = saliency.scores(fractional(1.0), params(), batches(), unit="example")
    for size in (0.1, 0.5, 2.0):
        got = saliency.scores(fractional(size), params(), batches(), unit="example")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, whole)


def test_what_is_spent_after_one_walk_is_refused_where_two_are_needed():
    listed = saliency.difference(loss, params(), batches(), batches(seed=1))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(listed))
    for pair in ((iter(batches()), batches()), (batches(), (b for b in batches()))):
        with pytest.raises(InputError, match="walked twice, found a .*make a list of it"):
            saliency.difference(loss, params(), *pair)
    one_walk = saliency.scores(loss, params(), iter(batches()))
    jax.tree.map(np.testing.assert_array_equal, one_walk, saliency.scores(loss, params(), batches()))


class Counted:
    """Batches that know how many units they hold, and how often they were walked."""

    def __init__(self):
        self.walks = 0

    def units(self, unit):
        return 24.0 if unit == "example" else 3.0

    def __iter__(self):
        self.walks += 1
        return iter(batches())


@pytest.mark.parametrize("unit", saliency.UNITS)
def test_batches_that_count_themselves_are_walked_once(unit):
    forget, preserve = Counted(), Counted()
    got = saliency.difference(loss, params(), forget, preserve, unit=unit, tau=0.5)
    expected = saliency.difference(loss, params(), batches(), batches(), unit=unit, tau=0.5)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert forget.walks == preserve.walks == 1


@pytest.mark.parametrize("unit", saliency.UNITS)
def test_equal_shapes_compile_once_on_a_mesh(unit, mesh):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    part = jax.device_put(params(), NamedSharding(mesh, PartitionSpec()))
    step, state = saliency.accumulator(loss, unit=unit), saliency.zeros(part)
    for batch in batches():
        state = step(state, part, jax.tree.map(lambda _: None, part), jax.device_put(batch, rows), 1.0)
    assert step._cache_size() == 1


def spoiled(**change):
    return [batches()[0] | change]


SLIPS = {
    "one batch": (lambda: saliency.scores(loss, params(), batches()[0]), "a list of batches, found one dict"),
    "no batches": (lambda: saliency.scores(loss, params(), 3), "a list of batches, found one int"),
    "an array": (lambda: saliency.scores(loss, params(), jnp.ones((2, 3))), "a list of batches"),
    "a key": (lambda: saliency.scores(loss, params(), spoiled(key=jax.random.key(0))), "key: a scalar"),
    "a scalar": (lambda: saliency.scores(loss, params(), spoiled(t=jnp.float32(1))), "t: a scalar"),
    "rows that differ": (lambda: saliency.scores(loss, params(), spoiled(t=jnp.ones(3))), "as many rows .*t: 3.*x: 8"),
    "no rows": (lambda: saliency.scores(loss, params(), [{"x": jnp.ones((0, 5)), "y": jnp.ones((0, 8))}]), "at least one"),
    "words": (lambda: saliency.scores(loss, params(), spoiled(who="Ada")), "found str at 'who'"),
    "chunk of none": (lambda: saliency.scores(loss, params(), batches(), chunk=0), "chunk .*found 0"),
    "half a chunk": (lambda: saliency.scores(loss, params(), batches(), chunk=1.5), "chunk .*found 1.5"),
    "a broken pattern": (lambda: saliency.scores(loss, params(), batches(), leaves="("), "regular expression"),
    "a loss in brackets": (lambda: saliency.scores(lambda p, b: (loss(p, b)[0],), params(), batches()), "one real number, or of two"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_are_named(slip):
    call, words = SLIPS[slip]
    with pytest.raises(InputError, match=words):
        call()
