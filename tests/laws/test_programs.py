"""Runs that share Programs compile together what is the same, and nothing that differs; runs that do not share nothing."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmu_jax import (
    InputError,
    lora,
    methods,
    objectives,
    programs,
    sharding,
    train,
    train_state,
)
from mmu_jax.optimizers import Pace
from mmu_jax.plan import Optimizer, Plan
from mmu_jax.programs import Programs
from mmu_jax.trainable import Limits, View, Whole
from toys import Rows, Table, fit_table, table

METHODS, MODEL = methods.METHODS, Table()
LORA = lora.LoRA(2, 2.0, "table/weight")


def planned(method, devices=(1, 1), **numbers):
    """A plan of a method (or of the name of one), and the shapes of its state."""
    method = METHODS[method] if isinstance(method, str) else method
    plan = Plan(method, **({"iterations": 4, "learning_rate": 0.1} | numbers))
    return plan, train_state.abstract(plan, MODEL, table(), sharding.make_mesh(*devices))


def gradient(kept, method, index=0, model=MODEL, **numbers):
    plan, like = planned(method, **numbers)
    return programs.make_gradient(plan, model, index, like, kept)


def update(kept, method, index=0, **numbers):
    plan, like = planned(method, **numbers)
    return programs.make_update(plan, index, like, kept)


WEIGHTED = methods.Method((dataclasses.replace(METHODS["grad_diff"].phases[0], weights={"forget": 0.5}),))
LOOKING = dataclasses.replace(METHODS["projected"].phases[0], lookahead=0.5)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("ga", 0, {}), ("projected", 0, {}), True),
        (("ga", 0, {}), ("mmunlearner", 0, {}), True),  # masks and factors act on the update
        (("mmunlearner", 1, {}), ("projected_retain", 1, {}), True),  # descent on the retain set, whoever takes it
        (("ga", 0, {}), ("npo", 0, {}), False),
        (("ga", 0, {}), ("grad_diff", 0, {}), False),
        (("ga", 0, {}), ("retain_ft", 0, {}), False),
        (("grad_diff", 0, {}), (WEIGHTED, 0, {}), False),
        (("projected", 0, {}), ("projected_deep", 0, {}), False),  # which looks ahead
        (("ga", 0, {}), (methods.Method((LOOKING,)), 0, {}), False),
        (
            ("ga", 0, {}),
            ("ga", 0, {"trainable": Whole("table/.*")}),
            False,
        ),  # known by what it says, not by what it comes to
        (("ga", 0, {}), ("ga", 0, {"devices": (8, 1)}), False),
        (("ga", 0, {}), ("ga", 0, {"trainable": LORA}), False),
        (("ga", 0, {"trainable": LORA}), ("npo_retain", 0, {"trainable": LORA}), False),
        (
            ("ga", 0, {"trainable": LORA}),
            ("mmunlearner", 0, {"trainable": LORA}),
            False,
        ),  # there they act in the params
        (("ga", 0, {"trainable": LORA}), ("projected", 0, {"trainable": LORA}), False),
        (("mmunlearner", 0, {"trainable": LORA}), ("mask_random", 0, {"trainable": LORA}), True),
        (("ga", 0, {"trainable": LORA}), ("ga", 0, {"trainable": dataclasses.replace(LORA, alpha=4.0)}), False),
    ],
)
def test_a_gradient_is_shared_where_losses_and_what_trains_are_the_same(one, other, shared):
    kept = Programs()
    (first, index, how), (second, place, otherwise) = one, other
    assert (gradient(kept, first, index, **how) is gradient(kept, second, place, **otherwise)) == shared


def test_a_gradient_is_of_one_model():
    kept = Programs()
    assert gradient(kept, "ga", model=Table()) is not gradient(kept, "ga")
    assert gradient(None, "ga") is not gradient(None, "ga"), "nothing is kept that nobody asked to keep"


@pytest.mark.parametrize("made", [lambda x: x, jnp.float32, lambda x: np.full(5, x)])
def test_options_of_a_loss_are_part_of_it(made):
    kept, plain = Programs(), isinstance(made(0.1), float)

    def npo(beta):
        return methods.Method((methods.Phase({"forget": "npo"}, options={"npo": {"beta": made(beta)}}),))

    assert gradient(kept, npo(0.1)) is not gradient(kept, npo(0.2))
    assert (gradient(kept, npo(0.1)) is gradient(kept, npo(0.1))) == plain  # an array is only ever itself


class Numbered(Whole):
    """Inherits how it is compared, and so says nothing of ``n``."""

    def __init__(self, n):
        super().__init__()
        object.__setattr__(self, "n", n)


@dataclasses.dataclass(frozen=True)
class Listed(Whole):
    names: list = dataclasses.field(default_factory=list)


def test_what_trains_and_cannot_be_told_apart_by_value_shares_with_itself_alone():
    kept = Programs()
    for first, second in ((Numbered(1), Numbered(2)), (Listed(), Listed())):
        one = gradient(kept, "ga", trainable=first)
        assert gradient(kept, "ga", trainable=second) is not one and gradient(kept, "ga", trainable=first) is one


@dataclasses.dataclass(frozen=True)
class Scaled(Whole):
    """Params that act so many times as large, and in projected phases as they are."""

    factor: float = 1.0

    def view(self, trained, frozen, limits, phase):
        view, factor = super().view(trained, frozen, limits, phase), 1.0 if self.sees(phase) else self.factor
        return dataclasses.replace(view, whole=lambda part: jax.tree.map(lambda w: factor * w, view.whole(part)))

    def sees(self, phase):
        return phase.projected


class Sharper(Table):
    def forward(self, params, batch):
        return 3 * super().forward(params, batch)


def test_a_look_is_shared_where_what_is_seen_is_the_same():
    data, kept, seen = Rows("forget", 1).batch(0), Programs(), []
    for model, name, scale in (
        (MODEL, "ga", 2.0),
        (Sharper(), "ga", 2.0),
        (MODEL, "ga", 5.0),
        (MODEL, "projected", 5.0),
        (MODEL, "npo", 5.0),
    ):
        plan, _ = planned(name, trainable=Scaled(factor=scale))
        (total, count), each = programs.make_watch(plan, model, kept)(table(), data, Limits(), None)
        assert float(total) == float(programs.make_watch(plan, model)(table(), data, Limits(), None)[0][0])
        assert each.shape == data["row"].shape and float(each.sum()) == pytest.approx(float(total))
        seen.append(round(float(total / count), 6))
    assert len(set(seen)) == 4 and seen[2] == seen[4], "whatever the loss, a look is a look"


RISING = dict(schedule="linear", warmup=0.5)
UNCLIPPED = methods.Method((methods.Phase({"forget": "ascent"}, clip=False),))


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("ga", 0, {}), ("grad_diff", 0, {"learning_rate": 3e-5}), True),
        (("ga", 0, {}), ("mmunlearner", 1, {}), True),
        (("projected", 0, {}), ("projected_retain", 1, {"retain_rate": 0.5}), True),
        (("mmunlearner", 0, {}), ("mask_random", 0, {}), True),
        (("ga", 0, {}), ("mmunlearner", 0, {}), False),
        (("ga", 0, {}), ("projected", 0, {}), False),
        (("mmunlearner", 0, {}), ("mmunlearner_official", 0, {}), False),
        (("ga", 0, {}), ("ga", 0, {"clip": 2.0}), False),
        (("ga", 0, {}), (UNCLIPPED, 0, {}), False),
        (("ga", 0, {}), ("ga", 0, {"adam": {"eps": 1e-6}}), False),
        (("ga", 0, {"adam": {"eps": 0.5}}), ("ga", 0, {"adam": {"eps": jnp.float32(0.5)}}), True),
        (("ga", 0, {}), ("ga", 0, {"schedule": "cosine"}), False),
        (("ga", 0, RISING), ("ga", 0, RISING | {"iterations": 8, "warmup": 0.25}), True),
        (("ga", 0, {}), ("ga", 0, {"iterations": 8}), True),
        (("ga", 0, {}), ("ga", 0, {"devices": (8, 1)}), False),
        (("ga", 0, {}), ("ga", 0, {"trainable": LORA}), False),
        (("ga", 0, {"trainable": LORA}), ("projected", 0, {"trainable": LORA}), False),
    ],
)
def test_an_update_is_shared_where_optimizer_and_what_trains_are_the_same(one, other, shared):
    kept = Programs()
    (first, index, how), (second, place, otherwise) = one, other
    assert (update(kept, first, index, **how) is update(kept, second, place, **otherwise)) == shared


OTHERWISE = {
    "clip": 2.0,
    "adam": (("eps", 0.1),),
    "limit": "projected",
    "gradients_only": False,
    "schedule": "linear",
}


def test_every_field_of_an_optimizer_tells_it_from_others():
    """``Programs`` look updates up by it, so what it leaves out would be another method's."""
    official = planned("mmunlearner_official")[0].optimizer(0)
    assert {field.name for field in dataclasses.fields(official)} == set(OTHERWISE)
    for field, value in OTHERWISE.items():
        assert getattr(official, field) != value and dataclasses.replace(official, **{field: value}) != official, field


def test_numbers_of_a_plan_may_be_arrays():
    plan, other = (planned("ga", clip=x(0.5), warmup=x(0.25), schedule="linear")[0] for x in (float, jnp.float32))
    assert plan.optimizer(0) == other.optimizer(0)


def test_masking_gradients_alone_is_another_update():
    official = planned("mmunlearner_official")[0].optimizer(0)
    assert official.gradients_only and dict(official.adam)["arithmetic"] == "official"
    clear = dataclasses.replace(official, gradients_only=False)
    grads, params, mask = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, {"w": jnp.array([True, False])}

    def moved(optimizer):
        tx, state = optimizer.transform(Pace(0.1)), optimizer.transform().init(params)
        state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)  # moments of steps before
        return tx.update(grads, state, params, mask=mask)[0]["w"]

    assert moved(official)[1] != 0.0 and moved(clear)[1] == 0.0
    with pytest.raises(InputError, match="expected a limit among projected, clip after mask, clip before mask or none"):
        Optimizer(1.0, limit="clip_after_mask")


def test_a_shared_update_steps_at_the_rate_of_its_plan():
    """The first step of Adam is the sign of the gradient times the rate, so that it shows whose rate was used."""
    data, start, kept = {"retain": Rows("retain", 1)}, table()["table"]["weight"], Programs()
    for rate in (0.1, 0.003, 0.1):
        _, state = fit_table(METHODS["retain_ft"], data, learning_rate=rate, programs=kept)
        moved = np.abs(state.params["table"]["weight"] - start)
        np.testing.assert_allclose(moved[moved > 0], rate, rtol=1e-3)
        assert (moved > 0).any()


def optax_schedule(name, peak, steps, rise):
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, steps - rise),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - rise),
    }[name]()
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), after], [rise]) if rise else after


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("constant", 0.5), ("linear", 0.0), ("linear", 0.5), ("cosine", 0.25)]
)
def test_a_rate_that_a_program_is_given_follows_the_schedule(schedule, warmup):
    """With a constant gradient and no eps every step of Adam is as long as the rate."""
    plan = Plan(METHODS["ga"], 8, learning_rate=0.3, schedule=schedule, warmup=warmup, adam={"eps": 0.0})
    optimizer, params, pace = plan.optimizer(0), {"w": jnp.ones(1)}, plan.pace(0)
    state, wanted = optimizer.transform().init(params), optax_schedule(schedule, 0.3, 8, int(8 * warmup))
    taken = jax.jit(lambda state, pace: optimizer.transform(pace).update({"w": jnp.ones(1)}, state, params))
    for i in range(8):
        updates, state = taken(state, pace)
        np.testing.assert_allclose(updates["w"], -float(wanted(i)), rtol=1e-4, atol=1e-8)


def compiled(caplog, run):
    """The gradients and updates that were compiled for a run."""
    caplog.clear()
    with jax.log_compiles():
        run()
    found = [re.search(r"Finished XLA compilation of jit\((\w+)\)", r.getMessage()) for r in caplog.records]
    return [m[1] for m in found if m and m[1] in ("gradient", "update")]


@pytest.mark.parametrize(
    ("name", "number"), [("grad_diff_alternate", 4), ("npo_retain", 2)]  # of a gradient and an update each
)  # fmt: skip
def test_a_run_that_differs_only_in_its_rates_compiles_nothing(name, number, caplog):
    data, model, kept = {"forget": Rows("forget", 2), "retain": Rows("retain", 4)}, Table(), Programs()

    def run(**rates):
        plan = Plan.of(METHODS[name], data, 1.0, **rates)
        return lambda: train.fit(plan, model, table(), data, mesh=sharding.make_mesh(1), programs=kept)

    first = compiled(caplog, run(learning_rate=0.1))
    assert sorted(set(first)) == ["gradient", "update"] and len(first) <= number
    assert not compiled(caplog, run(learning_rate=0.02, retain_rate=0.3))


def test_a_loss_that_was_written_anew_is_seen_by_the_next_run(monkeypatch):
    """Without Programs in common nothing outlives a run."""
    data, row = {"forget": Rows("forget", 1)}, objectives.LOSSES["ascent"]
    _, before = fit_table(METHODS["ga"], data)

    def tenfold(seen, batch):
        total, count = row.of(seen, batch)
        return 10 * total, count

    monkeypatch.setitem(objectives.LOSSES, "ascent", dataclasses.replace(row, of=tenfold))
    _, after = fit_table(METHODS["ga"], data)
    np.testing.assert_allclose(after.history["forget/ascent"], 10 * before.history["forget/ascent"], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Apart(Whole):
    """Trains a table for the forget set and one for the others, which add up."""

    limits_in_params = True
    consumes = False

    def start(self, params, phases, seed):
        return {who: jax.tree.map(jnp.zeros_like, params) for who in ("forget", "others")}

    def view(self, trained, frozen, limits, phase):
        who = self.sees(phase)
        other = next(name for name in trained if name != who)
        return View(
            trained[who],
            lambda part: jax.tree.map(lambda w, a, b: w + a + b, frozen, part, trained[other]),
            lambda part: trained | {who: part},
        )

    def sees(self, phase):
        return "forget" if "forget" in phase.losses else "others"


def test_what_trains_may_differ_by_the_losses_of_a_phase():
    data, plain = {"forget": Rows("forget", 1), "retain": Rows("retain", 1)}, METHODS["grad_diff_alternate"]
    _, state = fit_table(plain, data, trainable=Apart(), adam={"eps": 1.0}, retain_rate=0.05, programs=Programs())
    rates = {"forget": 0.1, "others": 0.05}
    forget = jax.grad(lambda w: loss(w, "ascent", data["forget"]))(table()["table"]["weight"])
    np.testing.assert_allclose(
        state.params["forget"]["table"]["weight"], first_step(forget, rates["forget"]), rtol=1e-4
    )
    moved = table()["table"]["weight"] + state.params["forget"]["table"]["weight"]
    kept = jax.grad(lambda w: loss(w, "descent", data["retain"]))(moved)
    np.testing.assert_allclose(state.params["others"]["table"]["weight"], first_step(kept, rates["others"]), rtol=1e-4)


def loss(weight, name, rows):
    total, count = objectives.take(name, objectives.Seen(MODEL, {"table": {"weight": weight}}), rows.batch(0))
    return total / count


def first_step(gradient, rate):
    """Of Adam with eps 1, after a clip to norm 1."""
    gradient = gradient / jnp.maximum(jnp.linalg.norm(gradient), 1.0)
    return -rate * gradient / (jnp.abs(gradient) + 1.0)
