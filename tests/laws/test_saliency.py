import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mmu_jax import InputError, masks, saliency, trees
from regression import batches, by_hand, loss, params


@pytest.mark.parametrize("kind", saliency.KINDS)
@pytest.mark.parametrize("unit", saliency.UNITS)
def test_scores_equal_a_numpy_loop(unit, kind):
    got = saliency.scores(loss, params(), batches(), unit=unit, kind=kind)
    for name, expected in by_hand(params(), batches(), unit, kind).items():
        np.testing.assert_allclose(np.asarray(got[name]), expected, rtol=1e-5, atol=1e-6)
        assert got[name].dtype == jnp.float32


def test_scores_equal_torch_autograd():
    import torch

    w = torch.tensor(np.asarray(params()["w"]), requires_grad=True)
    b = torch.tensor(np.asarray(params()["b"]))
    expected = 0
    for batch in batches():
        x, y = torch.tensor(batch["x"]), torch.tensor(batch["y"])
        (grad,) = torch.autograd.grad(((x @ w.T + b - y) ** 2).mean(), w)
        expected = expected + grad**2 / 3
    got = saliency.scores(loss, params(), batches(), unit="batch")
    np.testing.assert_allclose(np.asarray(got["w"]), expected.numpy(), rtol=1e-5, atol=1e-8)


def test_rows_without_weight_do_not_count():
    sets = batches(2)
    for batch in sets:
        batch["weights"] = np.ones((8, 8), np.float32)
        batch["weights"][5:] = 0
    got = saliency.scores(loss, params(), sets)
    np.testing.assert_allclose(
        np.asarray(got["w"]), by_hand(params(), sets, "example", "squared")["w"], rtol=1e-5, atol=1e-7
    )
    assert saliency.units([sets[0]]) == 5 and saliency.units([sets[0]], "batch") == 1


@pytest.mark.parametrize("chunk", [1, 2, 8, 64])
def test_the_chunk_does_not_change_the_scores(chunk):
    got = saliency.scores(loss, params(), batches(), chunk=chunk)
    np.testing.assert_allclose(
        np.asarray(got["w"]), by_hand(params(), batches(), "example", "squared")["w"], rtol=1e-5, atol=1e-7
    )


def test_a_scalar_loss_works_too():
    def scalar(p, batch):
        total, count = loss(p, batch)
        return total / count

    a, b = (saliency.scores(f, params(), batches()) for f in (loss, scalar))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-6), a, b)


def test_only_the_leaves_asked_for_are_scored():
    got = saliency.scores(loss, params(), batches(), leaves="w")
    assert got["b"] is None and got["w"].shape == (8, 5)
    with pytest.raises(InputError, match="matches none"):
        saliency.scores(loss, params(), batches(), leaves="q")


@pytest.mark.parametrize("unit", saliency.UNITS)
def test_one_signed_accumulator_gives_the_mask_of_two(unit):
    forget, preserve = batches(2, seed=1), batches(5, seed=2)
    f, p = (saliency.scores(loss, params(), s, unit=unit) for s in (forget, preserve))
    for tau in (0.5, 1.0):
        difference = saliency.difference(loss, params(), forget, preserve, tau=tau, unit=unit)
        two, one = masks.ratio(f, p, tau=tau), masks.sign(difference, tau=tau)
        for name, score in trees.flatten(difference).items():
            # Away from ties: fp32 sums in another order differ by 1e-6 of the largest score.
            sure = np.abs(np.asarray(score)) > 1e-5 * np.abs(score).max()
            np.testing.assert_array_equal(np.asarray(two[name])[sure], np.asarray(one[name])[sure])
            assert sure.all() or sure.mean() > 0.9


def test_no_examples_is_an_error():
    with pytest.raises(InputError, match="expected at least one example to score"):
        saliency.scores(loss, params(), [])
    with pytest.raises(InputError, match="at least one preserve example"):
        saliency.difference(loss, params(), batches(), [])
    with pytest.raises(InputError, match="expected unit"):
        saliency.scores(loss, params(), batches(), unit="row")


def test_flax_linen_params():
    model = nn.Dense(8)
    p = model.init(jax.random.key(0), jnp.ones((1, 5)))["params"]

    def dense(p, batch):
        return jnp.square(model.apply({"params": p}, batch["x"]) - batch["y"]).mean()

    got = saliency.scores(dense, p, batches(), leaves="kernel")
    expected = by_hand({"w": p["kernel"].T, "b": p["bias"]}, batches(), "example", "squared")
    np.testing.assert_allclose(np.asarray(got["kernel"]).T, expected["w"], rtol=1e-5, atol=1e-7)
    mask = masks.fill(masks.top_k(got, 10), p)
    masks.check(mask, p)


def test_flax_nnx_state():
    graph, state = nnx.split(nnx.Linear(5, 8, rngs=nnx.Rngs(0)))

    def linear(state, batch):
        return jnp.square(nnx.merge(graph, state)(batch["x"]) - batch["y"]).mean()

    got = saliency.scores(linear, state, batches())
    kernel = state["kernel"].get_value()
    expected = by_hand({"w": kernel.T, "b": state["bias"].get_value()}, batches(), "example", "squared")
    np.testing.assert_allclose(np.asarray(got["kernel"].get_value()).T, expected["w"], rtol=1e-5, atol=1e-7)
    assert masks.count(masks.top_k(got, 7)) == 7


def test_every_mesh_gives_the_same_scores_sharded_as_the_params(mesh):
    where = {"w": NamedSharding(mesh, PartitionSpec("model")), "b": NamedSharding(mesh, PartitionSpec("model"))}
    placed = jax.device_put(params(), where)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sets = [jax.device_put(batch, rows) for batch in batches()]
    with jax.set_mesh(mesh):
        got = saliency.scores(loss, placed, sets)
    expected = by_hand(params(), batches(), "example", "squared")
    for name in expected:
        np.testing.assert_allclose(np.asarray(got[name]), expected[name], rtol=1e-5, atol=1e-7)
        assert got[name].sharding.is_equivalent_to(where[name], got[name].ndim)
