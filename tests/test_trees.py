import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
