"""Programs that are compiled ahead of time are those that run, and are given what the memory plan counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import curvature, hf, memory, methods, sharding, trees
from toys import SPEC, make_batch

SHAPE = memory.Shape(8, 24, images=1)


@pytest.mark.parametrize("devices", [(1, 1), (4, 2)])
def test_a_step_is_given_what_the_plan_counts(llava, devices):
    from experiments import compiled

    model, mesh = llava[2], sharding.make_mesh(*devices)
    where = sharding.shardings(model.abstract(), model.family.rules, mesh)
    params = compiled.placed(model.abstract(), where, jnp.bfloat16)
    with jax.set_mesh(mesh):
        (lowered, beside), (update, others) = compiled.stepping(model, params, "projected", SPEC, SHAPE, mesh)
    given = lowered.compile().memory_analysis().argument_size_in_bytes + beside
    ledger = memory.Ledger(model, mesh, jnp.bfloat16)
    needs = ledger.training(methods.METHODS["projected"], SHAPE, SPEC, compiled.FRACTION)
    kept = sum(needs[name] for name in ("params", "adapters", "moments", "gradients"))
    reached = jax.tree.leaves(compiled.factors_of(params, SPEC.targets))  # what LoRA does not adapt, no step reads
    kept += sum(4 * math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) for x in reached)
    batch = trees.nbytes(make_batch(rows=8)) // devices[0]
    assert 0.97 * kept < given - batch < 1.03 * kept, (kept, given, batch)
    assert (
        update.compile().memory_analysis().argument_size_in_bytes + others >= 0.97 * kept
    )  # all factors, not only those reached


def test_the_first_block_of_grams_is_what_is_measured(llava):
    from experiments import compiled

    folder, _, model = llava
    mesh = sharding.make_mesh(1)
    params = compiled.placed(model.abstract(), sharding.shardings(model.abstract(), model.family.rules, mesh))
    batch = compiled.batch(model, SHAPE, mesh)
    real = make_batch(rows=8) | {"person": np.zeros(8, np.int32)}
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}
    lowered = compiled.measuring(model, params, SHAPE, mesh)
    leaves = curvature.matrices(params, model.family.eligible)
    made = curvature.grams(
        compiled.objectives.of_params("sketch", model),
        hf.load(folder, model),
        [sharding.put(real, mesh)],
        leaves=leaves,
        block=(0, compiled.BLOCKS),
    )
    expected = {name: (x.shape, x.dtype) for name, x in trees.flatten(made).items()}
    assert {name: (x.shape, x.dtype) for name, x in lowered.out_info.items()} == expected
