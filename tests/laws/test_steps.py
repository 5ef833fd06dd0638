"""How often, how far and with what a step is taken, and what becomes of one that is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmu_jax import (
    InputError,
    checkpoint,
    curvature,
    methods,
    objectives,
    programs,
)
from mmu_jax.optimizers import Pace
from mmu_jax.plan import Optimizer, Plan
from toys import Rows, Table, fit_table, table


@pytest.mark.parametrize(
    ("steps", "poison", "rate", "failed", "kept"),
    [
        (3, 2, 0.1, 2, 2),  # the loss, in the last step
        (3, 0, 0.1, 0, None),
        (1, -1, 1e39, 0, None),  # the params, in the only step: loss and gradient are finite
        (3, -1, 1e39, 0, None),
    ],
)
def test_no_checkpoint_of_a_state_that_is_not_finite(tmp_path, steps, poison, rate, failed, kept):
    data = {"retain": Rows("retain", steps, poison)}
    with pytest.raises(InputError) as error:
        fit_table(methods.METHODS["retain_ft"], data, tmp_path / "c", learning_rate=rate)
    assert f"found NaN or infinity at step {failed} in retain rows [0, 1]" in str(error.value)
    assert checkpoint.Checkpoints(tmp_path / "c").latest == kept


def test_without_checkpoints_the_end_is_looked_at_too():
    with pytest.raises(InputError, match="at step 2"):
        fit_table(methods.METHODS["retain_ft"], {"retain": Rows("retain", 3, poison=2)})


# ---- how often, how far


@pytest.mark.parametrize(
    ("retain", "forget", "epochs"), [(8, 3, 1), (8, 2, 1), (57, 7, 1), (8, 3, 2), (3, 8, 2), (5, 5, 1), (1810, 96, 1)]
)
def test_a_lap_takes_every_forget_batch_at_most_once(retain, forget, epochs):
    data = {"retain": Rows("retain", retain), "forget": Rows("forget", forget)}
    for name in ("mmunlearner", "mmunlearner_official", "grad_diff_alternate"):
        method = methods.METHODS[name]
        plan = Plan.of(method, data, epochs)
        turns = [plan.turn(method.phases[0], i) for i in range(plan.iterations)]
        taken = [batch for batch in turns if batch is not None]
        lap = max(retain, forget)  # of a retain stream that is shorter, several passes in one over the forget stream
        every = lap // forget
        assert len(taken) == epochs * min(-(-lap // every), forget) and len(set(taken)) == len(taken)
        assert [b % forget for b in taken] == list(range(forget)) * epochs
        assert [plan.turn(method.phases[1], i) for i in range(plan.iterations)] == list(range(plan.iterations))


def counts(state):
    return sorted({int(value) for _, value in optax.tree.get_all_with_path(state, "count")})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmunlearner_official", {"shared": 11}),
        ("grad_diff_alternate", {"phase0": 3, "phase1": 8}),
        ("npo", {"phase0": 3}),
    ],
)
def test_a_schedule_ends_with_the_steps_that_are_taken(name, expected, monkeypatch):
    lengths, real = [], Plan.pace
    monkeypatch.setattr(Plan, "pace", lambda *given: lengths.append(real(*given)) or lengths[-1])
    data = {"retain": Rows("retain", 8), "forget": Rows("forget", 3)}
    mask = {"table": {"weight": jnp.eye(5, dtype=bool)}}
    _, state = fit_table(methods.METHODS[name], data, mask=mask, schedule="linear")
    assert {key: counts(value) for key, value in state.opt_state.items()} == {k: [n] for k, n in expected.items()}
    assert {pace.steps for pace in lengths} == set(expected.values())


def test_the_official_rows_have_one_rate_and_others_two():
    def moved(name):
        data = {"retain": Rows("retain", 1), "forget": Rows("forget", 1)}
        mask = {"table": {"weight": jnp.zeros((5, 5), bool)}}
        _, state = fit_table(methods.METHODS[name], data, mask=mask, learning_rate=1e-3, retain_rate=1e-1)
        return float(jnp.abs(state.params["table"]["weight"] - table()["table"]["weight"]).max())

    assert moved("mmunlearner") == pytest.approx(1e-1, rel=1e-3)
    assert moved("mmunlearner_official") < 2e-3


# ---- what a loss needs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ga", set()),
        ("kl", {"teacher"}),
        ("npo", {"reference"}),
        ("npo_retain", {"reference"}),
        ("mmunlearner_official", set()),
    ],
)
def test_a_method_says_what_its_losses_need(name, expected):
    assert methods.METHODS[name].needs == expected


def test_a_loss_gets_the_vanilla_model_because_it_says_so(monkeypatch):
    """By whatever name it goes."""

    def pull(seen, batch):
        return ((seen.params["table"]["weight"] - seen.vanilla["table"]["weight"]) ** 2).sum(), jnp.float32(1.0)

    monkeypatch.setitem(objectives.LOSSES, "pull", objectives.Loss(pull, frozenset({"teacher"})))
    method = methods.Method((methods.Phase({"retain": "pull"}),))
    _, state = fit_table(method, {"retain": Rows("retain", 2)})
    assert np.asarray(state.history["retain/pull"]).tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(state.params["table"]["weight"], table()["table"]["weight"])


def test_a_step_is_of_the_weighted_sum_and_its_curves_are_of_the_losses_themselves():
    phase = methods.Phase({"forget": "ascent", "retain": "descent"}, weights={"forget": 0.25})
    seen, batches = (
        objectives.Seen(Table(), table()),
        {name: Rows(name, 1).batch(i) for i, name in enumerate(phase.losses)},
    )
    total, values = programs.objective(phase, seen, batches)
    plain, same = programs.objective(dataclasses.replace(phase, weights={}), seen, batches)
    assert values == same and set(values) == {"forget/ascent", "retain/descent"}
    assert float(total) == pytest.approx(0.25 * float(values["forget/ascent"]) + float(values["retain/descent"]))
    assert float(plain) == pytest.approx(sum(map(float, values.values())))


def test_a_loss_takes_the_stream_beside_its_own_row_by_row():
    data = {name: Rows(name, 2) for name in ("forget", "refusal", "retain")}
    data["refusal"].batch = lambda step: Rows("refusal", 2).batch(step + 7)
    _, state = fit_table(methods.METHODS["dpo"], data)
    assert set(state.history) == {"forget/dpo", "retain/descent"}
    seen, (own, other) = objectives.Seen(Table(), table()), (data[name].batch(0) for name in ("forget", "refusal"))
    margin = 0.1 * (seen.logps(other) - other["ref_logps"] - seen.logps(own) + own["ref_logps"])
    np.testing.assert_allclose(state.history["forget/dpo"][0], np.log1p(np.exp(-margin)).mean(), rtol=1e-5)
    with pytest.raises(InputError, match="found dpo, which needs reference, refusal; use descent"):
        objectives.of_params("dpo", Table())


def test_npo_without_its_reference_is_refused():
    data = {"forget": Rows("forget", 1)}
    deal = data["forget"].batch
    data["forget"].batch = lambda step: {k: v for k, v in deal(step).items() if k != "ref_logps"}
    with pytest.raises(InputError, match="expected ref_logps in the batches of npo"):
        fit_table(methods.METHODS["npo"], data)


def test_npo_with_a_retain_term_is_the_sum_of_both_in_one_step():
    data = {"retain": Rows("retain", 4), "forget": Rows("forget", 2)}
    plan, state = fit_table(methods.METHODS["npo_retain"], data)
    assert plan.iterations == 2 and set(state.history) == {"forget/npo", "retain/descent"}
    batch = Rows("forget", 1).batch(0)
    total, values = programs.objective(
        plan.method.phases[0], objectives.Seen(Table(), table()), dict.fromkeys(data, batch)
    )
    np.testing.assert_allclose(total, values["forget/npo"] + values["retain/descent"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_compiled_check_sees_one_entry_that_is_not_finite(odd, dtype):
    """Whatever a compiler makes of comparisons with NaN, wherever it stands, in leaves of any size."""
    check = jax.jit(programs._finite)
    for shape in ((), (3,), (513, 257)):
        sound = {"w": jnp.full(shape, -2.0, dtype), "count": jnp.ones((), jnp.int32), "none": jnp.zeros((0,), dtype)}
        assert check(sound)
        for place in {0, sound["w"].size // 2, sound["w"].size - 1}:
            assert not check(sound | {"w": sound["w"].ravel().at[place].set(odd).reshape(shape)}), (shape, place)


LIMITED = {
    "": {},
    "clip after mask": {"limit": "clip after mask"},
    "clip before mask": {"limit": "clip before mask"},
    "gradients": {"limit": "clip before mask", "gradients_only": True},
    "projected": {"limit": "projected"},
}


@pytest.mark.parametrize("arithmetic", ["optax", "official"])
@pytest.mark.parametrize("name", LIMITED)
def test_a_step_that_is_not_taken_changes_nothing(name, arithmetic):
    """Whatever the gradient is, NaN too: neither moments nor counts nor what is added to a param, minus zero among them."""
    optimizer = Optimizer(1.0, adam=(("arithmetic", arithmetic), ("weight_decay", 0.1)), **LIMITED[name])
    params = {"w": jnp.array([[0.5, -0.0], [-2.0, 3.0]]), "v": jnp.array([[1.0, -0.0]])}
    tx, extra = optimizer.transform(Pace(0.1)), {}
    if "mask" in LIMITED[name].get("limit", ""):
        extra["mask"] = jax.tree.map(lambda p: p > 0, params)
    if name == "projected":
        extra["factors"] = {"w": curvature.Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1)), "v": None}
    state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, **extra)[1]
    update = jax.jit(lambda g, taken: tx.update(g, state, params, taken=taken, **extra))
    for g in (jnp.nan, jnp.inf, 1.0):
        grads = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        updates, after = update(grads, False)
        jax.tree.map(np.testing.assert_array_equal, after, state)
        assert all(not np.asarray(u).any() for u in jax.tree.leaves(updates))
    moved, after = update(grads, True)
    assert int(after.count) == int(state.count) + 1 and np.asarray(moved["w"]).any()
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(after.mu.values(), state.mu.values(), strict=True)
    )
