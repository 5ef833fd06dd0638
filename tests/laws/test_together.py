"""Adapters and leaves that train whole beside them: both move, nothing else does, and the files get what was trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, hf, lora, methods, sharding, trees
from mmu_jax.plan import Plan, describe
from mmu_jax.together import Together
from mmu_jax.trainable import Limits, Whole
from toys import SPEC, run

BOTH = Together(
    dataclasses.replace(SPEC, targets=r"language_model/layers/.*(q|v)_proj/weight"), r"multi_modal_projector/.*"
)
PLAN = Plan(methods.METHODS["grad_diff"], 3, learning_rate=1e-2, trainable=BOTH)


@pytest.fixture(scope="module")
def trained(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    state = run(model, params, "grad_diff", iterations=3, learning_rate=1e-2, trainable=BOTH)
    view = BOTH.view(state.params, params, Limits(), PLAN.method.phases[0])
    return params, state, trees.flatten(view.whole(view.part), is_leaf=lambda x: isinstance(x, lora.Adapted))


def test_both_move_and_nothing_else(trained):
    params, state, after = trained
    assert int(state.failed) < 0
    for name, before in trees.flatten(params).items():
        if name.startswith("multi_modal_projector"):
            assert (after[name] != before).any(), name
        elif isinstance(after[name], lora.Adapted):
            assert "q_proj" in name or "v_proj" in name
            assert (after[name].weight == before).all() and (after[name].free.b != 0).any()
        else:
            np.testing.assert_array_equal(after[name], before, err_msg=name)


def test_the_files_get_both(trained, llava, tmp_path):
    folder, _, model = llava
    params, state, after = trained
    hf.rewrite(model, folder, tmp_path / "out", BOTH.change(state.params, Limits()))
    for name, value in trees.flatten(hf.load(tmp_path / "out", model)).items():
        made = after[name]
        made = made.weight + lora.product(made.free, SPEC.scale) if isinstance(made, lora.Adapted) else made
        np.testing.assert_allclose(value, made, rtol=0, atol=1e-6 * float(jnp.abs(made).max()), err_msg=name)


def test_the_first_step_of_the_leaves_is_the_one_that_they_would_take_alone(llava):
    """New adapters add nothing, so in the first step, whose norm nobody clips, the leaves go as they would alone."""
    folder, _, model = llava
    params = hf.load(folder, model)
    numbers = {"iterations": 1, "learning_rate": 1e-2, "clip": 1e9}
    alone = run(model, params, "grad_diff", trainable=Whole(BOTH.whole), **numbers)
    both = run(model, params, "grad_diff", trainable=BOTH, **numbers)
    for name, value in trees.flatten(both.params["whole"]).items():
        np.testing.assert_allclose(value, trees.flatten(alone.params)[name], atol=1e-6, err_msg=name)


def test_eight_devices_train_what_one_does(trained, llava):
    _, state, _ = trained
    folder, _, model = llava
    mesh = sharding.make_mesh(4, 2)
    params = hf.load(folder, model, mesh)
    there = run(model, params, "grad_diff", iterations=3, learning_rate=1e-2, trainable=BOTH, mesh=mesh)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(there.params), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_both_move_in_the_other_family_too(qwen):
    folder, _, model = qwen
    both = Together(dataclasses.replace(SPEC, targets=r"language_model/layers/.*q_proj/weight"), r"visual/merger/.*")
    both.check_leaves(model.abstract())
    start = both.start(hf.load(folder, model), PLAN.method.phases, 0)
    view = both.view(start, hf.load(folder, model), Limits(), PLAN.method.phases[0])
    whole = trees.flatten(view.whole(view.part), is_leaf=lambda x: isinstance(x, lora.Adapted))
    assert {name for name in trees.flatten(start["whole"])} == {
        name for name in whole if name.startswith("visual/merger")
    }
    assert sum(isinstance(leaf, lora.Adapted) for leaf in whole.values()) == 1


def test_memory_is_counted_and_said(llava):
    folder, _, model = llava
    shapes, method = model.abstract(), methods.METHODS["ga"]
    part = trees.size(trees.split(shapes, BOTH.whole)[0])

    def count(tree, dtype=np.float32):
        return trees.size(tree)

    alone, both = BOTH.lora.needs(shapes, method, count), BOTH.needs(shapes, method, count)
    assert {name: both[name] - alone[name] for name in both} == {
        "adapters": part,
        "gradients": part,
        "moments": 2 * part,
    }
    told = describe(PLAN, shapes, None)
    assert f"beside it {part:,} parameters train whole" in told
    assert BOTH.low_rank(BOTH.start(hf.load(folder, model), PLAN.method.phases, 0), Limits()).others


@pytest.mark.parametrize(
    ("name", "found"), [("mmunlearner", "without mask or projection"), ("projected", "without mask or projection")]
)
def test_what_would_hold_on_a_part_alone_is_refused(name, found):
    with pytest.raises(InputError, match=found):
        Plan(methods.METHODS[name], 1, trainable=BOTH)


def test_leaves_of_both_or_of_none_are_refused(llava):
    shapes = llava[2].abstract()
    with pytest.raises(InputError, match="which both patterns match"):
        dataclasses.replace(BOTH, whole="language_model/.*").check_leaves(shapes)
    with pytest.raises(InputError, match="matches none"):
        dataclasses.replace(BOTH, whole="projector").check_leaves(shapes)
