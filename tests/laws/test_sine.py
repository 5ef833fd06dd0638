"""A bounded weight starts where it was, moves as its params would, ends nowhere further than 1, and is counted to the byte."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, hf, lora, memory, methods, sharding, train_state, trees
from mmu_jax.plan import Plan
from mmu_jax.rules import Rule
from mmu_jax.sine import Sine
from mmu_jax.trainable import Limits, Whole
from toys import Rows, fit_table, make_batch, run, same, streams, table

SINE = methods.METHODS["sine_project"]


@pytest.fixture(scope="module")
def trained(llava):
    """Params, and what is trained in steps that are far too long."""
    folder, _, model = llava
    params = hf.load(folder, model)
    with jax.default_matmul_precision("highest"):
        return params, run(model, params, "sine_project", learning_rate=1.0, iterations=6).params


def test_it_starts_as_the_vanilla_model(llava):
    folder, _, model = llava
    params, how = hf.load(folder, model), SINE.trains()
    assert how == Sine(SINE.bounded) == SINE.trains(model.family)
    start = how.start(params, SINE.phases, 0)
    same(how.view(start, params, Limits(), SINE.phases[0]).whole(start), params)


def test_only_its_targets_move_and_none_further_than_one(trained):
    params, sines = trained
    after = trees.flatten(SINE.trains().view(sines, params, Limits(), None).whole(sines))
    chosen = trees.flatten(trees.select(params, SINE.bounded))
    for name, before in trees.flatten(params).items():
        off = np.abs(np.asarray(after[name]) - np.asarray(before))
        assert off.max() <= 1 + 1e-6 and bool(off.any()) == chosen[name], name
    assert max(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(sines)) > 1.5, "the steps were longer than that"


def test_what_is_written_is_what_was_trained(trained):
    params, sines = trained
    change = SINE.trains().change(sines, Limits())
    after = trees.flatten(SINE.trains().view(sines, params, Limits(), None).whole(sines))
    for name, leaf in trees.flatten(params).items():
        made = change(name, None, np.asarray(leaf))
        if made is not None:
            np.testing.assert_allclose(made, after[name], rtol=0, atol=1e-6)
        assert (made is None) == (name not in trees.flatten(sines))
    assert SINE.trains().low_rank(sines, Limits()) is None


DATA = {"forget": Rows("forget", 2), "retain": Rows("retain", 4)}


def test_its_first_step_is_that_of_the_params_themselves():
    one = {"epochs": 0.5, "learning_rate": 1e-3}
    (plan, bounded), (_, plain) = (
        fit_table(methods.METHODS["ga"], DATA, trainable=how, **one) for how in (Sine("table/weight"), Whole())
    )
    assert plan.iterations == 1
    whole = plan.trainable.view(bounded.params, table(), Limits(), None).whole(bounded.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), whole, plain.params)
    assert (np.asarray(whole["table"]["weight"]) != np.asarray(table()["table"]["weight"])).any()


def test_a_mask_holds_on_the_weights_that_follow():
    mask = {"table": {"weight": np.arange(25).reshape(5, 5) % 3 == 0}}
    method = methods.Method((methods.Phase({"forget": "ascent"}, masked=True),), Rule(), bounded="table/weight")
    _, state = fit_table(method, DATA, mask=jax.tree.map(jnp.asarray, mask))
    moved, chosen = np.asarray(state.params["table"]["weight"]) != 0, mask["table"]["weight"]
    assert moved.any() and not moved[~chosen].any()
    outside, inside = state.moved["table/weight"].tolist()
    assert outside == 0 and 0 < inside <= chosen.sum()


def test_what_it_keeps_is_counted_to_the_byte(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    state = train_state.init(Plan.of(SINE, streams(), 1.0), model, params, sharding.make_mesh(1))
    shape = memory.Shape(len(batch["tokens"]), batch["tokens"].shape[1], images=1)
    needs = memory.Ledger(model, sharding.make_mesh(1)).training(SINE, shape)
    assert needs["adapters"] == needs["gradients"] == trees.nbytes(state.params)
    assert needs["moments"] == trees.nbytes([x for x in jax.tree.leaves(state.opt_state) if x.ndim])
    assert "teacher" not in needs


def test_what_would_not_hold_is_refused():
    with pytest.raises(InputError, match="a method without projected steps, found one .*; choose another"):
        Plan(dataclasses.replace(methods.METHODS["projected"], bounded="a"), 1)
    with pytest.raises(InputError, match="a method without a scope of its own, found .*projector.*set lora.rank=0"):
        lora.LoRA(2, 2.0, ".*q_proj/weight").check(SINE)


def test_frozen_params_may_be_coarse():
    view = Sine("w").view({"w": jnp.full(2, 1e-4)}, {"w": jnp.ones(2, jnp.bfloat16)}, Limits(), None)
    assert float(view.whole(view.part)["w"][0]) > 1.0, "added in float32"
