import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from mmu_jax import InputError, masks, trees
from toys import scores


def test_ratio_equals_its_definition():
    f, p = scores(0), scores(1)
    for tau in (0.5, 1.0, 2.0):
        got = masks.ratio(f, p, tau=tau, eps=1e-6)
        for name, m in trees.flatten(got).items():
            a, b = (np.asarray(trees.flatten(t)[name], np.float64) for t in (f, p))
            np.testing.assert_array_equal(np.asarray(m), (a + 1e-6) / (b + 1e-6) >= tau)


def test_no_evidence_selects_nothing():
    f = {"w": jnp.array([0.0, 1e-20, 1.0, 0.0])}
    p = {"w": jnp.array([0.0, 1e-21, 0.5, 1.0])}
    assert masks.ratio(f, p)["w"].tolist() == [False, False, True, False]
    assert masks.ratio(f, p, noise=0.0)["w"].tolist() == [False, True, True, False]
    assert masks.sign({"w": jnp.array([0.0, 1e-20, 0.5, -1.0])})["w"].tolist() == [False, False, True, False]


@pytest.mark.parametrize("k", [0, 1, 57, 100, 168])
def test_top_k_selects_exactly_the_largest(k):
    tree = scores()
    chosen = masks.top_k(tree, k)
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])
    mask = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(chosen)])
    assert mask.sum() == k == masks.count(chosen)
    assert set(np.flatnonzero(mask)) == set(np.argsort(-flat, kind="stable")[:k])


@pytest.mark.parametrize("k", [1, 7, 30, 31, 59])
def test_top_k_is_exact_among_ties(k):
    tree = {"a": jnp.asarray(np.repeat([0.0, 2.0, 1.0], 10), jnp.float32), "b": jnp.full((5, 6), 1.0)}
    chosen = masks.top_k(tree, k)
    assert masks.count(chosen) == k
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])
    mask = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(chosen)])
    if k < 60:
        assert flat[mask].min() >= flat[~mask].max()


def test_top_k_per_leaf_takes_a_number_for_each():
    chosen = masks.top_k(scores(), {"a": 3, "b/c": 11}, scope="leaf")
    assert {name: int(leaf.sum()) for name, leaf in trees.flatten(chosen).items()} == {"a": 3, "b/c": 11}
    with pytest.raises(InputError, match="between 0 and"):
        masks.top_k(scores(), 10_000)
    with pytest.raises(InputError, match="scope"):
        masks.top_k(scores(), 1, scope="row")


def test_selection_by_count_is_the_same_sharded(mesh):
    tree = scores()
    where = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.tree.map(lambda x: jax.device_put(x, where), tree)
    jax.tree.map(np.testing.assert_array_equal, masks.top_k(tree, 77), masks.top_k(placed, 77))


def test_random_has_the_density_of_every_leaf_and_a_seed():
    like = masks.top_k(scores(), 50)
    drawn = [masks.random(jax.random.key(seed), like) for seed in (1, 1, 2)]
    for mask in drawn:
        assert jax.tree.map(lambda m: int(m.sum()), mask) == jax.tree.map(lambda m: int(m.sum()), like)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), drawn[0], drawn[1])))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), drawn[0], drawn[2])))


def test_salun_takes_a_global_fraction():
    assert masks.count(masks.salun(scores(), 0.25)) == 42
    with pytest.raises(InputError, match="fraction"):
        masks.salun(scores(), 0.0)


def test_algebra():
    a, b = {"w": jnp.array([True, True, False])}, {"w": jnp.array([True, False, False])}
    assert masks.union(a, b)["w"].tolist() == [True, True, False]
    assert masks.intersect(a, b)["w"].tolist() == [True, False, False]
    assert masks.invert(a)["w"].tolist() == [False, False, True]


def test_fill_restrict_and_coverage():
    params = {"x": {"weight": jnp.ones(4), "bias": jnp.ones(2)}, "y": {"weight": jnp.ones(4)}}
    part = {"x": {"weight": jnp.array([True] * 3 + [False]), "bias": None}, "y": {"weight": jnp.ones(4, bool)}}
    full = masks.fill(part, params)
    assert full["x"]["bias"].tolist() == [False, False]
    assert masks.restrict(full, "x/.*")["y"]["weight"].sum() == 0
    assert masks.coverage(full) == {
        "x": {"selected": 3, "total": 6, "density": 0.5},
        "y": {"selected": 4, "total": 4, "density": 1.0},
    }


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"w": jnp.zeros(4, bool)}, "none of its entries"),
        ({"w": jnp.ones(4, bool)}, "all 4 entries"),
        ({"w": jnp.ones(3, bool)}, "shape"),
        ({"v": jnp.ones(4, bool)}, "w is missing"),
        ({"w": jnp.ones(4)}, "dtype"),
    ],
    ids=["empty", "full", "misshapen", "unmatched", "not bool"],
)
def test_masks_that_cannot_act_are_refused(mask, message):
    with pytest.raises(InputError, match=message):
        masks.check(mask, {"w": jnp.ones(4)})


def test_save_is_bit_packed_and_load_gives_the_mask_back(tmp_path, mesh):
    rng = np.random.default_rng(0)
    mask = {"a": jnp.asarray(rng.random((64, 33)) < 0.3), "b": {"c": jnp.asarray(rng.random(1001) < 0.5)}}
    masks.save(tmp_path / "m", mask)
    assert (tmp_path / "m").stat().st_size <= -(-trees.size(mask) // 8) + 512  # names and shapes of two leaves
    where = NamedSharding(mesh, PartitionSpec("data"))
    params = {"a": jax.device_put(jnp.zeros((64, 33)), where), "b": {"c": jnp.zeros(1001)}}
    loaded = masks.load(tmp_path / "m", params)
    jax.tree.map(np.testing.assert_array_equal, mask, loaded)
    assert loaded["a"].sharding == where and loaded["a"].dtype == bool


def test_load_refuses_another_model_a_damaged_file_and_another_file(tmp_path):
    mask = {"a": jnp.ones((8, 8), bool)}
    masks.save(tmp_path / "m", mask)
    with pytest.raises(InputError, match="does not fit this model"):
        masks.load(tmp_path / "m", {"b": jnp.ones((8, 8))})
    (tmp_path / "short").write_bytes((tmp_path / "m").read_bytes()[:-3])
    with pytest.raises(InputError, match="damaged"):
        masks.load(tmp_path / "short", mask)
    save_file({"x": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(InputError, match="not"):
        masks.load(tmp_path / "other", mask)
