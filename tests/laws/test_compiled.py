"""Programs that are compiled ahead of time are those that run, and are given what the memory plan counts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import curvature, hf, memory, methods, sharding, trees
from mmu_jax.trainable import Whole
from toys import SPEC, make_batch

SHAPE = memory.Shape(8, 24, images=1)


@pytest.mark.parametrize("devices", [(1, 1), (4, 2)])
@pytest.mark.parametrize("name, trained", [("projected", SPEC), ("mmunlearner", Whole())])
def test_a_step_is_given_what_the_plan_counts(llava, devices, name, trained):
    """All that is kept lies there in both programs of a step, whether they read it or not."""
    from experiments import compiled

    model, mesh = llava[2], sharding.make_mesh(*devices)
    dtype = jnp.float32 if trained.consumes else jnp.bfloat16
    where = sharding.shardings(model.abstract(), model.family.rules, mesh)
    params = compiled.placed(model.abstract(), where, dtype)
    with jax.set_mesh(mesh):
        made = compiled.stepping(model, params, name, trained, SHAPE, mesh)
    needs = memory.Ledger(model, mesh, dtype).training(methods.METHODS[name], SHAPE, trained, compiled.FRACTION)
    kept = sum(needs.get(kind, 0) for kind in ("params", "adapters", "moments", "gradients", "mask"))
    if name == "projected":
        kept += compiled.held(compiled.factors_of(params, model.family.eligible))
    batch = trees.nbytes(make_batch(rows=8)) // devices[0]
    # A branch around an update held three more trees on a TPU, whose compiler lays out what is inside for itself.
    assert not re.search(r"stablehlo\.(case|if)", made[1].lowered.as_text())
    for program in made:
        assert 0.97 * kept < program.sizes()[0] - batch < 1.03 * kept


def test_the_compilers_of_this_machine_need_no_other(typed, capsys):
    """The whole way, for the smallest published model: planned and allotted stand side by side."""
    from experiments import command, compiled

    asked = ("--target=cpu-8", "--models=qwen2-vl-2b", "--trained=lora", "--programs=ga")
    typed(*asked, how=command.parse_without_config)
    compiled.compiled()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "GiB per device of cpu-8: planned / arguments + temporary buffers"
    assert re.fullmatch(r"  qwen2-vl-2b    lora    8x1  ga +[\d.]+ / +[\d.]+ = [\d.]+ \+ [\d.]+ +\(\d+ s\)", said[1])


def test_the_first_block_of_grams_is_what_is_measured(llava):
    from experiments import compiled

    folder, _, model = llava
    mesh = sharding.make_mesh(1)
    params = compiled.placed(model.abstract(), sharding.shardings(model.abstract(), model.family.rules, mesh))
    batch = compiled.batch(model, SHAPE, mesh)
    real = make_batch(rows=8) | {"person": np.zeros(8, np.int32)}
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}
    lowered = compiled.measuring(model, params, SHAPE, mesh).lowered
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
