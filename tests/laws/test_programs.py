"""Plans that share a loss share its gradient, those that share an optimizer its update, and none shares what differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import methods, objectives, sharding, step, train, train_state, transforms
from mmu_jax.plan import Plan
from toys import Rows, Table, fit_table, table

MODEL = Table()


def planned(method, **numbers):
    """A plan, and the shapes of its state."""
    plan = Plan(method, **({"iterations": 4, "learning_rate": 0.1} | numbers))
    return plan, train_state.abstract(plan, MODEL, table(), sharding.make_mesh(1))


def gradient(method, index=0, model=MODEL):
    plan, like = planned(method)
    return step.make_gradient(plan, model, index, like)


def update(method, index=0, numbers=None):
    plan, like = planned(method, **(numbers or {}))
    return step.make_update(plan, index, like)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("ga",), ("projected",), True),
        (("ga",), ("mmunlearner",), True),  # masks and factors act on the update
        (("mmunlearner", 1), ("projected_retain", 1), True),  # descent on the retain set, whoever takes it
        (("ga",), ("npo",), False),
        (("ga",), ("grad_diff",), False),
        (("ga",), ("retain_ft",), False),
        (("projected",), ("projected_deep",), False),  # which looks ahead
    ],
)
def test_a_gradient_is_shared_where_the_losses_are_the_same(one, other, shared):
    (first, *index), (second, *place) = one, other
    found = gradient(methods.METHODS[first], *index), gradient(methods.METHODS[second], *place)
    assert (found[0] is found[1]) == shared


def test_a_gradient_is_of_one_model_and_of_what_the_table_says_now(monkeypatch):
    before, ga = gradient(methods.METHODS["ga"]), methods.METHODS["ga"]
    assert gradient(ga, model=Table()) is not before
    row = objectives.LOSSES["ascent"]
    monkeypatch.setitem(
        objectives.LOSSES, "ascent", dataclasses.replace(row, of=lambda seen, batch: row.of(seen, batch))
    )
    assert gradient(ga) is not before


def test_options_of_a_loss_are_part_of_it():
    def npo(beta):
        return methods.Method((methods.Phase({"forget": "npo"}, options={"npo": {"beta": beta}}),))

    assert gradient(npo(0.1)) is gradient(npo(0.1)) and gradient(npo(0.1)) is not gradient(npo(0.2))


RISING = dict(schedule="linear", warmup=0.5)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("ga", 0, {}), ("grad_diff", 0, {"learning_rate": 3e-5}), True),
        (("ga", 0, {}), ("mmunlearner", 1, {}), True),
        (("projected", 0, {}), ("projected_retain", 1, {"retain_rate": 0.5}), True),
        (("mmunlearner", 0, {}), ("mask_random", 0, {}), True),
        (("ga", 0, {}), ("mmunlearner", 0, {}), False),
        (("ga", 0, {}), ("projected", 0, {}), False),
        (("ga", 0, {}), ("ga", 0, {"clip": 2.0}), False),
        (("ga", 0, {}), ("ga", 0, {"adam": {"eps": 1e-6}}), False),
        (("ga", 0, {}), ("ga", 0, {"schedule": "cosine"}), False),
        (("ga", 0, RISING), ("ga", 0, RISING | {"iterations": 8}), False),  # a schedule has a length
        (("ga", 0, {}), ("ga", 0, {"iterations": 8}), True),
    ],
)
def test_an_update_is_shared_where_the_optimizers_are_the_same(one, other, shared):
    (first, *given), (second, *others) = one, other
    assert (update(methods.METHODS[first], *given) is update(methods.METHODS[second], *others)) == shared


def test_a_shared_update_steps_at_the_rate_of_its_plan():
    """The first step of Adam is the sign of the gradient times the rate, so that it shows whose rate was used."""
    data, start = {"retain": Rows("retain", 1)}, table()["table"]["weight"]
    for rate in (0.1, 0.003, 0.1):
        _, state = fit_table(methods.METHODS["retain_ft"], data, learning_rate=rate)
        moved = np.abs(state.params["table"]["weight"] - start)
        np.testing.assert_allclose(moved[moved > 0], rate, rtol=1e-3)
        assert (moved > 0).any()


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("constant", 0.5), ("linear", 0.0), ("linear", 0.5), ("cosine", 0.25)]
)
def test_a_rate_that_a_program_is_given_follows_the_schedule(schedule, warmup):
    """With a constant gradient and no eps every step of Adam is as long as the rate."""
    plan = Plan(methods.METHODS["ga"], 8, learning_rate=0.3, schedule=schedule, warmup=warmup, adam={"eps": 0.0})
    optimizer, params, rate = plan.optimizer(0), {"w": jnp.ones(1)}, np.float32(plan.rate(0))
    state, wanted = (
        optimizer.transform().init(params),
        transforms.learning_rate(0.3, 8, schedule=schedule, warmup=warmup),
    )
    taken = jax.jit(lambda state, rate: optimizer.transform(rate).update({"w": jnp.ones(1)}, state, params))
    for i in range(8):
        updates, state = taken(state, rate)
        np.testing.assert_allclose(updates["w"], -float(wanted(i)), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["grad_diff_alternate", "npo_retain"])
def test_a_run_that_differs_only_in_its_rates_compiles_nothing(name, caplog):
    data, model = {"forget": Rows("forget", 2), "retain": Rows("retain", 4)}, Table()

    def compiled(**rates):
        caplog.clear()
        plan = Plan.of(methods.METHODS[name], data, 1.0, **rates)
        with jax.log_compiles():
            train.fit(plan, model, table(), data, mesh=sharding.make_mesh(1))
        return [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]

    assert compiled(learning_rate=0.1) and not compiled(learning_rate=0.02, retain_rate=0.3)
