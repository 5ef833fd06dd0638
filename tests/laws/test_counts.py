"""Selections by count, layer by layer, sharded and within shard_map; and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from mmu_jax import InputError, masks, trees
from toys import scores


def layered(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"layers": {"w": (4, 8, 6), "b": (4, 8)}, "head": (8, 16)}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.random(s), jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


COUNTS = {"layers/w": np.array([0, 3, 48, 7]), "layers/b": np.array([8, 0, 1, 2]), "head": np.array([9])}


def test_top_k_by_layer_takes_the_largest_of_every_row():
    tree = layered()
    chosen = masks.top_k(tree, COUNTS, scope="layer")
    got = masks.layer_counts(chosen)
    assert {name: row.tolist() for name, row in got.items()} == {name: row.tolist() for name, row in COUNTS.items()}
    for name, counts in COUNTS.items():
        score, mask = (np.asarray(trees.flatten(t)[name]).reshape(len(counts), -1) for t in (tree, chosen))
        for row in range(len(counts)):
            expected = np.argsort(-score[row], kind="stable")[: counts[row]]
            assert set(np.flatnonzero(mask[row])) == set(expected)


def test_top_k_by_layer_takes_one_number_a_tree_or_ties():
    tree = {"layers": {"w": jnp.ones((3, 5))}, "head": jnp.ones(4)}
    same = [
        masks.top_k(tree, k, scope="layer")
        for k in (2, {"layers": {"w": 2}, "head": 2}, {"layers/w": np.array([2, 2, 2]), "head": 2})
    ]
    for mask in same:
        assert mask["layers"]["w"].tolist() == [[True, True, False, False, False]] * 3
        assert mask["head"].tolist() == [True, True, False, False]


def test_a_list_of_layers_is_not_stacked():
    tree = {"layers": [{"w": jnp.arange(6.0).reshape(2, 3)}]}
    assert masks.top_k(tree, 2, scope="layer")["layers"][0]["w"].tolist() == [[False] * 3, [False, True, True]]


def test_random_has_the_density_of_every_layer():
    like = masks.top_k(layered(), COUNTS, scope="layer")
    drawn = masks.random(jax.random.key(0), like)
    jax.tree.map(np.testing.assert_array_equal, masks.layer_counts(drawn), masks.layer_counts(like))
    assert not np.array_equal(drawn["head"], like["head"])


@pytest.mark.parametrize("k", [0.1, 1.0, True, np.True_, -1, 169, "3", None, np.float32(2), np.nan], ids=str)
def test_k_is_a_number_of_entries(k):
    for scope in ("global", "leaf", "layer"):
        with pytest.raises(
            InputError, match="expected (k as a number of entries|to select between 0|a number for every)"
        ):
            masks.top_k(scores(), k, scope=scope)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ({"a": 3}, "found b/c on one side only"),
        ({"a": 3, "b/c": 1, "d": 1}, "found d on one side only"),
        ({"a": 3, "b/c": 0.5}, "number of entries .*of 'b/c', found .*0.5"),
        ({"a": np.array([1, 2]), "b/c": 1}, r"expected 1 numbers at 'a', found shape \(2,\)"),
        ({"a": 129, "b/c": 1}, "between 0 and 128 entries of 'a'"),
    ],
    ids=["missing", "unknown", "fraction", "several", "too many"],
)
def test_numbers_by_leaf_fit_the_leaves(k, message):
    for scope in ("leaf", "layer"):
        with pytest.raises(InputError, match=message):
            masks.top_k(scores(), k, scope=scope)
    assert masks.count(masks.top_k(scores(), np.int64(3))) == masks.count(masks.top_k(scores(), jnp.int32(3))) == 3


@pytest.mark.parametrize("fraction", [np.nan, -0.1, 1.1, np.inf])
def test_salun_refuses_what_is_no_fraction(fraction):
    with pytest.raises(InputError, match="fraction"):
        masks.salun(scores(), fraction)


ODD = {
    "nan": (jnp.array([1.0, np.nan]), "finite"),
    "infinity": (jnp.array([1.0, np.inf]), "finite"),
    "negative": (jnp.array([1.0, -1.0]), "not negative"),
    "integer": (jnp.array([1, 2]), "floating point, found int32"),
    "bool": (jnp.array([True, False]), "floating point, found bool"),
    "complex": (jnp.array([1j, 2]), "floating point, found complex64"),
    "key": (jax.random.split(jax.random.key(0)), "floating point, found key"),
    "a number": (3.0, "expected arrays, found float"),
}


@pytest.mark.parametrize("odd", ODD)
def test_scores_that_cannot_be_compared_are_refused_by_name(odd):
    tree, good = {"a": jnp.ones(2), "b": ODD[odd][0]}, {"a": jnp.ones(2), "b": jnp.ones(2)}
    rules = [lambda: masks.top_k(tree, 1), lambda: masks.salun(tree), lambda: masks.ratio(tree, tree)]
    rules += [lambda: masks.ratio(good, tree), lambda: masks.top_k(tree, 1, scope="layer")]
    rules += [lambda: masks.sign(tree)] if odd != "negative" else []
    for rule in rules:
        with pytest.raises(InputError, match=f"{ODD[odd][1]}.*b") as error:
            rule()
        assert "\n" not in str(error.value)


def test_minus_zero_is_zero():
    tree = {"a": jnp.array([-0.0, 1.0, 0.0])}
    assert masks.top_k(tree, 2)["a"].tolist() == [True, True, False]
    assert masks.count(masks.top_k(tree, 3)) == 3


def test_trees_with_none_are_parts_of_trees(tmp_path):
    """As ``equinox.partition`` makes them: arrays on one side, None for what is not."""
    params = {"act": None, "w": jnp.ones((2, 3)), "step": jnp.int32(3), "key": jax.random.key(0)}
    mask = masks.fill({"act": None, "w": jnp.eye(2, 3, dtype=bool), "step": None, "key": None}, params)
    assert mask["act"] is None and mask["step"].shape == mask["key"].shape == () and mask["key"].dtype == bool
    masks.check(mask, params)
    assert masks.coverage(mask)["w"]["selected"] == masks.count(mask) == 2
    assert masks.restrict(mask, "step")["w"].sum() == 0 and masks.restrict(mask, "w")["act"] is None
    assert masks.count(masks.union(mask, masks.invert(mask))) == trees.size(params) == 8
    masks.save(tmp_path / "m", mask)
    jax.tree.map(np.testing.assert_array_equal, masks.load(tmp_path / "m", params), mask)


def refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_what_is_no_mask_is_refused_by_name():
    params, mask = {"w": jnp.ones(2), "v": jnp.ones(2)}, {"w": jnp.ones(2, bool), "v": jnp.zeros(2, bool)}
    refused(lambda: masks.fill(mask | {"u": jnp.ones(2, bool)}, params), "u")
    refused(lambda: masks.fill(mask, params | {"f": jax.nn.relu}), "found .* at 'f'")
    refused(lambda: masks.fill({"w": jnp.ones(2), "v": None}, params), "w has dtype float32, expected bool")
    refused(lambda: masks.count(params), "expected a mask of bool in masks.count, found float32 at 'v'")
    refused(lambda: masks.save("unwritten", params), "expected a mask of bool")
    refused(lambda: masks.random(jax.random.key(0), params), "expected a mask of bool")
    refused(lambda: masks.union(mask, {"w": mask["w"]}), "v is missing")
    refused(lambda: masks.intersect({"w": mask["w"]}, mask), "is not a leaf|is missing")


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [("data",), (None, "model")], ids=["rows", "columns"])
def test_meshes_of_either_kind_of_axes_give_the_same_masks(tmp_path, axes, spec):
    mesh, tree = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes,) * 2), layered()
    where = NamedSharding(mesh, PartitionSpec(*spec))
    placed = jax.device_put(tree, where)
    by_layer = masks.top_k(tree, COUNTS, scope="layer")
    makes = {
        "global": lambda x: masks.top_k(x, 77),
        "layer": lambda x: masks.top_k(x, COUNTS, scope="layer"),
        "ratio": lambda x: masks.ratio(x, jax.tree.map(lambda s: 1 - s, x)),
        "random": lambda x: masks.random(jax.random.key(0), masks.top_k(x, COUNTS, scope="layer")),
        "filled": lambda x: masks.fill({"layers": {"w": masks.top_k(x, 9)["layers"]["w"], "b": None}, "head": None}, x),
    }
    masks.save(tmp_path / "m", jax.device_put(by_layer, where))
    jax.tree.map(np.testing.assert_array_equal, masks.load(tmp_path / "m", placed), by_layer)
    for make in makes.values():
        expected, got = make(tree), make(placed)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert all(leaf.sharding.is_equivalent_to(where, leaf.ndim) for leaf in jax.tree.leaves(got))


def test_inside_shard_map_ratio_is_right_and_counting_is_refused():
    mesh = jax.make_mesh((8,), ("data",))
    spec = PartitionSpec("data")
    tree = {"w": jax.device_put(scores()["a"], NamedSharding(mesh, spec))}
    split = jax.shard_map(lambda x: masks.ratio(x, {"w": 1 - x["w"]}), mesh=mesh, in_specs=(spec,), out_specs=spec)
    np.testing.assert_array_equal(split(tree)["w"], np.asarray(tree["w"]) >= 0.5)
    for rule in (lambda x: masks.top_k(x, 1), lambda x: masks.random(jax.random.key(0), {"w": x["w"] > 0})):
        with pytest.raises(InputError, match=r"call it outside jax\.jit and jax\.shard_map"):
            jax.shard_map(rule, mesh=mesh, in_specs=(spec,), out_specs=spec)(tree)


@pytest.mark.parametrize("checked", [True, False], ids=["vma", "no vma"])
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_inside_shard_map_the_floor_is_that_of_the_whole_tensor(axes, checked):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    f = {"w": jax.device_put(jnp.array([[1e6]] + [[1e-9]] * 7), rows)}
    p = jax.tree.map(jnp.zeros_like, f)
    options = {"mesh": mesh, "out_specs": PartitionSpec("data"), "check_vma": checked}
    inside = jax.shard_map(masks.ratio, in_specs=(PartitionSpec("data"),) * 2, **options)(f, p)
    signed = jax.shard_map(masks.sign, in_specs=(PartitionSpec("data"),), **options)(f)
    for mask in (inside, signed, masks.ratio(f, p)):
        assert np.asarray(mask["w"]).ravel().tolist() == [True] + [False] * 7
    stacked = {"layers": f}
    with pytest.raises(InputError, match="whole arrays of stacked layers.*outside"):
        jax.shard_map(masks.sign, in_specs=(PartitionSpec("data"),), **options)(stacked)


def test_the_floor_is_that_of_a_layer_stacked_or_not():
    rows = jnp.array([[1.0, 1.0], [1e-13, 1e-13], [1.0, 1e-13]])
    stacked, listed = {"layers": {"w": rows}}, {"layers": {str(i): {"w": row} for i, row in enumerate(rows)}}
    for one, many in ((stacked, listed),):
        for make in (masks.sign, lambda t: masks.ratio(t, jax.tree.map(jnp.zeros_like, t))):
            got = np.asarray(make(one)["layers"]["w"])
            assert got.tolist() == [[True, True], [True, True], [True, False]]
            np.testing.assert_array_equal(got, np.stack([m["w"] for m in make(many)["layers"].values()]))


def test_a_leaf_without_entries_has_a_mask_without_entries():
    empty = {"w": jnp.zeros((0, 3)), "v": jnp.ones(2)}
    for mask in (masks.ratio(empty, empty), masks.sign(empty)):
        assert mask["w"].shape == (0, 3) and mask["v"].all()


MASK = {"w": jnp.array([True, False])}


SLIPS = {
    "tau of words": (lambda: masks.ratio(scores(), scores(), tau="1"), "finite number for tau, found '1'"),
    "tau of NaN": (lambda: masks.ratio(scores(), scores(), tau=np.nan), "finite number for tau"),
    "endless eps": (lambda: masks.sign(scores(), eps=np.inf), "finite number for eps"),
    "a fraction of words": (lambda: masks.salun(scores(), "half"), "finite number for fraction"),
    "a seed for a key": (lambda: masks.random(0, MASK), r"a key, jax.random.key\(seed\).*found 0"),
    "no pattern": (lambda: masks.restrict(MASK, "("), r"regular expression of leaf names, found '\('"),
    "scores restricted": (lambda: masks.restrict(scores(), ".*"), "a mask of bool in masks.restrict, found float32 at 'a'"),
    "integers inverted": (lambda: masks.invert({"w": jnp.arange(2)}), "a mask of bool in masks.invert, found int32"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_are_named(slip):
    call, words = SLIPS[slip]
    with pytest.raises(InputError, match=words):
        call()


def test_what_is_no_file_of_a_mask_is_one_line(tmp_path):
    masks.save(tmp_path / "m", MASK)
    for bits, header in (
        (np.zeros(3, np.uint8), '{"shapes": {"w": [2]}, "sha256": ""}'),
        (np.zeros(1, np.int32), '{"shapes": {"w": [2]}, "sha256": ""}'),
        (np.zeros(1, np.uint8), '{"shapes": {"w": [2]}, "sha256": ""}'),
        (np.zeros(1, np.uint8), '{"shapes": {"w": 2}, "sha256": ""}'),
        (np.zeros(1, np.uint8), '{"w": [2]}'),  # of a release that told no hash
        (np.zeros(1, np.uint8), '{"w":'),
        (np.zeros(1, np.uint8), "[2]"),
    ):
        save_file({"bits": bits}, str(tmp_path / "bad"), metadata={"mmu_jax.mask": header})
        with pytest.raises(InputError, match="bad.*make the mask again"):
            masks.load(tmp_path / "bad", MASK)
    for nowhere in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="expected a mask file"):
            masks.load(nowhere, MASK)
    for nowhere in (tmp_path / "none" / "m", tmp_path):
        with pytest.raises(InputError, match="expected a place to write the mask to"):
            masks.save(nowhere, MASK)
