"""When a run ends before its last iteration, and what a look-ahead steps with."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmu_jax import (
    InputError,
    NotFiniteError,
    checkpoint,
    hf,
    likelihood,
    lora,
    losses,
    methods,
    objectives,
    sharding,
    trees,
)
from mmu_jax.curvature import Factor
from mmu_jax.plan import Plan, Stop, describe
from mmu_jax.train_state import WATCHED, latest
from toys import SPEC, Batches, Killed, Rows, Table, basis, dying, fit_table, random_factors, run, same, streams, table

STEPS = 24
GA = methods.METHODS["ga"]


def rows(**changes):
    return {"forget": Rows("forget", STEPS)} | changes


def go(stop=None, where=None, data=None, method=GA, **numbers):
    watched = {"watched": Rows("watched", 3)} if stop else {}
    options = {"where": where, "stop": stop, "learning_rate": 0.05} | watched | numbers
    return fit_table(method, data or rows(), **options)[1]


def probability(params):
    """Of all watched answers, by numpy: the mean over rows of the geometric mean over tokens."""
    logits, found = np.asarray(params["table"]["weight"], np.float64), []
    for batch in Rows("watched", 3).epoch():
        for tokens in batch["tokens"]:
            z = logits[tokens[:-1]]
            logps = z[range(3), tokens[1:]] - np.log(np.exp(z).sum(axis=-1))
            found.append(np.exp(logps.mean()))
    return np.mean(found)


@pytest.fixture(scope="module")
def curve():
    """What would be seen after every iteration."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(go(Stop(0.0, every=1)).history[WATCHED])


def by_hand(curve, level, every):
    """The iterations at which is looked, by the rule in words; the run ends at the last."""
    looks = []
    for done in range(1, len(curve) + 1):
        if len(looks) >= 2:
            last = looks[-1]
            between = min(every, max(last // 4, 1))
            slope = min((curve[last - 1] - curve[before - 1]) / (last - before) for before in looks[-3:-1])
            half_way = (level - curve[last - 1]) / slope / 2 if slope < 0 else np.inf
            if done < last + max(1, np.floor(min(between, half_way))):
                continue
        looks.append(done)
        if curve[done - 1] <= level:
            return looks
    return looks if looks[-1] == len(curve) else [*looks, len(curve)]  # where a run ends without, it is looked at too


def test_what_is_seen_is_the_mean_probability_of_the_answers(curve):
    assert curve.shape == (STEPS,) and (np.diff(curve) < 0).all()
    np.testing.assert_allclose(curve[-1], probability(go().params), rtol=1e-5)


def test_the_probability_of_rows_that_only_fill_counts_for_nothing():
    logits, tokens = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)
    total, count = losses.probability(logits, tokens, jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert float(total) == pytest.approx(0.25, rel=1e-6) and float(count) == 1


@pytest.mark.parametrize("every", [1, 4, 5, 7])
@pytest.mark.parametrize("at", [3, 9, 14])
def test_a_run_ends_at_the_first_look_at_or_below_the_level(curve, every, at):
    level = float(curve[at - 1])
    looks = by_hand(curve, level, every)
    state = go(Stop(level, every=every))
    end = int(state.step)
    assert end == looks[-1] >= at and end < STEPS
    seen = np.asarray(state.history[WATCHED])
    assert (np.flatnonzero(~np.isnan(seen)) + 1).tolist() == looks
    np.testing.assert_array_equal(seen[np.array(looks) - 1], curve[np.array(looks) - 1])
    same(state.params, go(None, data=rows(forget=Rows("forget", end))).params)
    assert np.isnan(np.asarray(state.history["forget/ascent"])[end:]).all()


def test_looks_are_as_dense_as_a_run_needs_to_end_close_to_the_level(curve):
    level = float(curve[21])
    looks = by_hand(curve, level, 8)
    assert looks[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 10] and looks[-2:] == [21, 22] and len(looks) < 18
    assert int(go(Stop(level, every=8)).step) == 22
    stop = Stop(0.2, every=8)
    assert stop.next([(99, 0.9), (100, 0.9)]) == stop.next([(99, 0.3), (100, 0.4)]) == 108  # it does not fall
    assert stop.next([(90, 0.31), (100, 0.30)]) == 108 and stop.next([(90, 0.50), (100, 0.30)]) == 102
    assert stop.next([(90, 0.50), (100, 0.21)]) == 101 and stop.next([(4, 0.99), (5, 0.98)]) == 6
    # One look that sees a little more than the one before, near the level, is no reason to look away.
    assert stop.next([(90, 0.50), (100, 0.30), (102, 0.302)]) == 105


def test_a_run_that_ends_before_the_level_says_where_it_ended(curve):
    for level, reached in ((float(curve[-1]), True), (0.0, False)):
        stop = Stop(level, every=8)
        assert by_hand(curve, 0.0, 8)[-2:] == [22, 24]  # the last of which no look was due at
        state = go(stop)
        assert int(state.step) == STEPS and stop.reached(latest(state)[WATCHED]) == reached
        assert latest(state)[WATCHED] == curve[-1]


def test_a_look_that_sees_nothing_is_an_error():
    watched = Rows("watched", 3)
    empty = watched.epoch
    watched.epoch = lambda: [batch | {"weights": 0 * batch["weights"]} for batch in empty()]
    with pytest.raises(NotFiniteError, match="expected a finite probability .* found nan after 1 iterations"):
        fit_table(GA, rows(), stop=Stop(0.1), watched=watched, learning_rate=0.05)


def test_a_fact_above_its_level_keeps_a_run_going(curve):
    """The likeliest answer counts until it is at its own level, long after the mean is at its."""
    weights = table()["table"]["weight"]
    batches = [
        losses.probabilities(weights[b["tokens"]], b["tokens"], b["weights"]) for b in Rows("watched", 3).epoch()
    ]
    row = int(np.argmax(np.concatenate([np.asarray(each) for each, _ in batches])))
    alone = np.asarray(go(Stop(0.0, every=1, facts=(((row,), 0.0),))).history[WATCHED])
    assert (alone > curve).all() and alone[:19].min() > alone[19]  # what is seen is that answer
    facts = (((row,), float(alone[19])), ((0, 1), 1.0))
    state = go(Stop(float(curve[8]), every=1, facts=facts))
    assert int(state.step) == 20
    seen = np.asarray(state.history[WATCHED])[:20]
    np.testing.assert_allclose(seen, np.maximum(curve[:20], curve[8] + alone[:20] - alone[19]), atol=1e-6)


def test_what_is_at_its_floor_is_left_alone():
    logits, tokens = jnp.zeros((2, 3, 4)).at[1].add(jnp.eye(4)[1]), jnp.array([[0, 1, 1], [0, 1, 1]])
    weights, floor = jnp.ones((2, 3)), jnp.array([0.25, 0.25])  # an even guess is at its floor, the other above
    total, count = losses.ascent(logits, tokens, weights, floor)
    alone = losses.ascent(logits[1:], tokens[1:], weights[1:])
    assert (float(total), float(count)) == pytest.approx(tuple(map(float, alone)))
    gradient = jax.grad(lambda z: losses.ascent(z, tokens, weights, floor)[0])(logits)
    assert not gradient[0].any() and gradient[1].any()
    total, count = losses.ascent(logits, tokens, weights, floor + 1)
    assert float(total) == float(count) == 0.0


def test_people_are_recognised_row_by_row(curve):
    """What the level is made of is what a look sees, but for whose it is."""
    watched, params = Rows("watched", 3), go().params
    watched.texts = types.SimpleNamespace(weights=[w for b in watched.epoch() for w in b["weights"]])
    watched.examples = [types.SimpleNamespace(person=str(i % 2)) for i in range(len(watched.texts.weights))]
    found = likelihood.recognised(Table(), params, watched, sharding.make_mesh(1))
    assert found.values.mean() == pytest.approx(curve[-1], rel=1e-5) and set(found.people) == {"0", "1"}


@pytest.mark.parametrize(
    "options", [{"level": -0.1}, {"level": 1.5}, {"level": float("nan")}, {"level": 0.2, "every": 0}]
)
def test_a_stop_that_can_not_be_is_refused(options):
    with pytest.raises(InputError, match="expected a level from 0 to 1 and at least an iteration between two looks"):
        Stop(**options)


def test_a_level_that_is_never_reached_changes_nothing(curve):
    plain, watched = go(), go(Stop(0.0, every=4))
    assert int(watched.step) == STEPS and WATCHED not in plain.history
    same(watched.params, plain.params)
    same(watched.opt_state, plain.opt_state)
    same({n: c for n, c in watched.history.items() if n != WATCHED}, plain.history)


@pytest.mark.parametrize("at", [5, 8, 11, 12])
def test_a_killed_run_ends_in_the_same_bits_at_the_same_iteration(curve, tmp_path, at):
    stop = Stop(float(curve[12]), every=4)
    straight = go(stop)
    assert int(straight.step) == 13
    with pytest.raises(Killed):
        go(stop, tmp_path / "c", rows(forget=dying(Rows("forget", STEPS), at)), save_every=5)
    assert checkpoint.Checkpoints(tmp_path / "c").latest == at // 5 * 5
    same(go(stop, tmp_path / "c", save_every=5), straight)


def test_what_ended_is_kept_and_does_not_go_on(curve, tmp_path):
    stop, data = Stop(float(curve[12]), every=4), rows()
    straight = go(stop, tmp_path / "c", save_every=5)
    assert checkpoint.Checkpoints(tmp_path / "c").latest == 13
    same(go(stop, tmp_path / "c", data, save_every=5), straight)
    assert set(data["forget"].dealt) <= {0}  # looked at for its shape, not stepped on


def test_a_plan_that_stops_needs_answers_to_watch_and_says_so():
    with pytest.raises(InputError, match="expected a stream of answers to watch"):
        fit_table(GA, rows(), stop=Stop(0.1))
    said = describe(Plan.of(GA, rows(), 1.0, stop=Stop(0.125)), table(), None)
    assert "ends when the right answers about the people to forget are at 0.125" in said
    assert "ends when" not in describe(Plan.of(GA, rows(), 1.0), table(), None)


@pytest.mark.parametrize("trainable", [None, SPEC], ids=["whole", "lora"])
def test_a_model_stops_too_and_goes_on_where_it_was(llava, tmp_path, trainable):
    """What is looked at is the model with its projected updates: by hand on the params that follow."""
    folder, _, model = llava
    params = hf.load(folder, model)
    factors, watched = random_factors(model, params), Batches("watched", 8, 1)  # that which is trained on
    options = dict(factors=factors, trainable=trainable, iterations=8, watched=watched)
    first = run(model, params, "projected", stop=Stop(0.0, every=1), **options)
    seen = np.asarray(first.history[WATCHED])
    whole = first.params if trainable is None else lora.adapt(SPEC, params, first.params, factors=factors)
    forward, totals = jax.jit(model.forward), []
    for batch in watched.epoch():
        totals.append(losses.probability(forward(whole, batch), batch["tokens"], batch["weights"]))
    assert seen[-1] == pytest.approx(sum(float(t) for t, _ in totals) / sum(float(n) for _, n in totals), rel=1e-5)
    assert (np.diff(seen) < 0).all()
    stop, data = Stop(float(seen[6]), every=1), streams(forget=dying(Batches("forget", 2, 1), 6))
    with pytest.raises(Killed):
        run(model, params, "projected", stop=stop, where=tmp_path / "c", data=data, **options)
    state = run(model, params, "projected", stop=stop, where=tmp_path / "c", **options)
    assert int(state.step) == 7 and latest(state)[WATCHED] == seen[6]
    np.testing.assert_array_equal(np.asarray(state.history[WATCHED])[:7], seen[:7])


# ---- look-ahead


def gradient(name, params, batch):
    return jax.grad(lambda p: losses.mean(*objectives.take(name, objectives.Seen(Table(), p), batch)))(params)


def by_two(params, lookahead, batches):
    """The mean of the ascent gradient here and that at a step of this length down the descent of the other batch."""
    down = gradient("descent", params, batches[1])
    length = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(down)))
    ahead = jax.tree.map(lambda p, d: p - lookahead * d / length, params, down)
    pair = gradient("ascent", params, batches[0]), gradient("ascent", ahead, batches[0])
    return jax.tree.map(lambda a, b: (a + b) / 2, *pair)


def deep(lookahead, **changes):
    return methods.Method((methods.Phase({"forget": "ascent"}, lookahead=lookahead, **changes),))


@pytest.mark.parametrize("total", [1, 2, 5])
def test_a_look_ahead_steps_with_the_mean_of_two_gradients(total):
    """Adam after one step keeps a tenth of the gradient in its momentum; the other batch is half a pass on."""
    stream = Rows("forget", total)
    plan, state = fit_table(deep(0.3), {"forget": stream}, epochs=1 / total, clip=1e9)
    assert plan.iterations == int(state.step) == 1
    batches = [Rows("forget", total).batch(turn) for turn in (0, max(total // 2, 1))]
    expected = by_two(table(), 0.3, batches)["table"]["weight"]
    (momentum,) = [v for n, v in trees.flatten(state.opt_state).items() if n.endswith("mu/table/weight")]
    np.testing.assert_allclose(10 * np.asarray(momentum), expected, atol=1e-6)
    plain = gradient("ascent", table(), batches[0])["table"]["weight"]
    assert np.abs(np.asarray(plain) - np.asarray(expected)).max() > 1e-3
    value = objectives.take("ascent", objectives.Seen(Table(), table()), batches[0])
    assert float(state.history["forget/ascent"][0]) == pytest.approx(float(losses.mean(*value)), rel=1e-6)


def test_no_look_ahead_is_the_plain_phase_bit_for_bit():
    data = rows(forget=Rows("forget", 4))
    same(fit_table(deep(0.0), data)[1], fit_table(GA, data)[1])
    assert data["forget"].dealt == [0, 0, 1, 2, 3] * 2  # no batch is taken for it
    assert np.abs(fit_table(deep(0.3), data)[1].params["table"]["weight"] - table()["table"]["weight"]).max() > 0


def test_a_projected_look_ahead_leaves_what_is_kept_alone():
    kept = {"table": {"weight": Factor(jnp.asarray(basis(np.random.default_rng(0), width=5, count=2)), jnp.ones(2))}}
    _, state = fit_table(deep(0.3, projected=True), rows(forget=Rows("forget", 4)), factors=kept)
    moved = np.asarray(state.params["table"]["weight"] - table()["table"]["weight"])
    assert np.abs(moved @ kept["table"]["weight"].basis).max() < 4e-6 * np.abs(moved).max()
    assert float(optax.global_norm(moved)) > 0


def test_a_look_ahead_is_of_one_loss_and_not_behind():
    for losses_of, lookahead in (({"forget": "ascent", "retain": "descent"}, 0.3), ({"forget": "ascent"}, -0.1)):
        with pytest.raises(InputError, match="expected a look-ahead of at least 0, in a phase of one loss"):
            methods.Phase(losses_of, lookahead=lookahead)
    with pytest.raises(InputError, match="masked or projected, found both"):
        dataclasses.replace(methods.Phase({"forget": "ascent"}, masked=True), projected=True)
