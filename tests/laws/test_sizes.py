"""Law 7: the published sizes by shapes alone, and where every leaf goes on a pod.

``python tests/laws/test_sizes.py`` writes the golden tables again.
"""

import pathlib

import jax
import numpy as np
import pytest

from mmu_jax import models, sharding, trees
from mmu_jax.models.published import PUBLISHED

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def table(name):
    """One line a leaf: name, shape, PartitionSpec on 8 x 4 devices; then what the forward pass never reads."""
    model = models.Model(PUBLISHED[name][0]())
    mesh = jax.sharding.AbstractMesh((8, 4), ("data", "model"))
    placed = trees.flatten(sharding.shardings(model.abstract(), model.family.rules, mesh))
    lines = []
    for leaf, shape in trees.flatten(model.abstract()).items():
        spec = ", ".join(axis or "-" for axis in placed[leaf].spec)
        lines.append(f"{leaf:66s} {'x'.join(map(str, shape.shape)):18s} {spec}".rstrip())
    lines += [f"unread {key}" for key in model.family.unread(model.config)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameter_count_is_the_published_one_and_every_leaf_has_a_rule(name):
    config, published = PUBLISHED[name]
    model = models.Model(config())
    unread = sum(int(np.prod(shape)) for shape in model.family.unread(model.config).values())
    assert trees.size(model.abstract()) + unread == published
    assert sharding.unmatched(model.abstract(), model.family.rules) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_leaves_are_sharded_as_the_golden_table_says(name):
    assert table(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_next_to_nothing_is_replicated(name):
    """Fewer than 1 % of the bytes lie on every one of 8 x 4 devices."""
    model = models.Model(PUBLISHED[name][0]())
    mesh = jax.sharding.AbstractMesh((8, 4), ("data", "model"))
    placed = trees.flatten(sharding.shardings(model.abstract(), model.family.rules, mesh))
    whole = [leaf for name, leaf in trees.flatten(model.abstract()).items() if placed[name].is_fully_replicated]
    assert trees.nbytes(whole) < 0.01 * trees.nbytes(model.abstract())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in PUBLISHED:
        (GOLDEN / f"{name}.txt").write_text(table(name))
