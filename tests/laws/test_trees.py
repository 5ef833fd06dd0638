import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmu_jax import InputError, trees

TREE = {
    "tower": {"layers": {"fc1": {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}},
    "head": {"weight": jnp.ones(4)},
}


def test_names_are_paths():
    assert list(trees.flatten(TREE)) == ["head/weight", "tower/layers/fc1/bias", "tower/layers/fc1/weight"]


def test_select_matches_whole_names_and_lists_names_when_nothing_matches():
    assert trees.select(TREE, ".*weight")["head"]["weight"] is True
    assert trees.select(TREE, "head/.*")["tower"]["layers"]["fc1"]["weight"] is False
    with pytest.raises(InputError, match="head/weight"):
        trees.select(TREE, "weight")


def test_merge_undoes_split_and_absent_leaves_are_no_leaves():
    part, rest = trees.split(TREE, ".*fc1.*")
    assert len(jax.tree.leaves(part)) == 2 and part["head"]["weight"] is None
    assert jax.tree.structure(trees.merge(part, rest)) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, trees.merge(part, rest), TREE)
    assert len(jax.tree.leaves(trees.part(TREE, part))) == 2


def test_sizes_and_groups():
    assert trees.size(TREE) == 13 and trees.nbytes(TREE) == 52
    assert trees.group("a/layers/mlp/fc1/weight") == "a/layers"
    assert trees.group("lm_head/weight") == "lm_head"


def test_check_like_lists_every_fault_in_one_line():
    other = {"tower": {"layers": {"fc1": {"weight": jnp.ones((3, 3)), "more": jnp.ones(1)}}}, "head": TREE["head"]}
    with pytest.raises(InputError) as error:
        trees.check_like(other, TREE, "the tree")
    text = str(error.value)
    assert "bias is missing" in text and "more is not a leaf" in text and "shape (3, 3), expected (2, 3)" in text
    assert "\n" not in text
    with pytest.raises(InputError, match="dtype float32, expected bool"):
        trees.check_like(TREE, TREE, "the mask", dtype=bool)


class Attention(nnx.Module):
    """A module with a submodule called ``value``, which is a name like any other."""

    def __init__(self, rngs):
        self.value, self.layers = nnx.Linear(2, 2, rngs=rngs), nnx.List([nnx.Linear(2, 2, rngs=rngs)])


def boxed():
    kernel = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
    return nn.Dense(3, kernel_init=kernel).init(jax.random.key(0), jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nnx.state(Attention(nnx.Rngs(0))), ["layers/0/bias", "layers/0/kernel", "value/bias", "value/kernel"]),
        (lambda: Attention(nnx.Rngs(0)), ["layers/0/bias", "layers/0/kernel", "value/bias", "value/kernel"]),
        (lambda: nnx.to_pure_dict(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))), ["bias", "kernel"]),
        (boxed, ["params/bias", "params/kernel"]),
        (lambda: {"value": jnp.ones(1), "a": {"value": None, "key": jnp.ones(1)}}, ["a/key", "value"]),
        (lambda: jnp.ones(1), [""]),
    ],
    ids=["nnx state", "nnx module", "pure dict", "linen boxes", "a key called value", "an array"],
)
def test_the_boxes_of_flax_are_no_part_of_a_name(make, names):
    tree = make()
    assert list(trees.flatten(tree)) == sorted(names)
    assert jax.tree.leaves(trees.map_named(lambda name, leaf: name, tree)) == sorted(names)
    part, rest = trees.split(tree, "|".join(names[:1]))
    assert list(trees.flatten(part)) == names[:1] and jax.tree.structure(trees.merge(part, rest)) == jax.tree.structure(
        tree
    )


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(InputError, match="two leaves named 'a/b'"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})


def test_like_takes_leaves_by_name():
    state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    got = trees.like({"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}, state)
    assert jax.tree.structure(got) == jax.tree.structure(state) and got["kernel"].get_value().sum() == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model/layers/w", True),
        ("blocks/w", True),
        ("layers/0/w", False),
        ("a/layers/12/layers/w", True),
        ("layers_0/w", False),
    ],
)
def test_a_leaf_is_stacked_in_a_container_that_is_no_list(name, expected):
    assert trees.stacked(name) is expected


def test_dataflow_looks_through_jit_and_scan():
    @jax.jit
    def fn(x, y):
        return jax.lax.scan(lambda c, _: ((c[0] * x, c[1] + y), None), (x, y), length=3)[0]

    shapes, sources = trees.dataflow(fn, jnp.ones(2), jnp.ones(3))
    assert [s.shape for s in shapes] == [(2,), (3,)]
    assert sources([True, False]) == [True, False] and sources([False, True]) == [False, True]
