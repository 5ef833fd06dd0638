"""Laws 3, 4 and 6: every mesh agrees, the mask acts, and a killed run ends in the same bits."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import (
    InputError,
    checkpoint,
    hf,
    masks,
    methods,
    objectives,
    saliency,
    sharding,
    train,
    train_state,
    trees,
)
from mmu_jax.plan import Plan
from mmu_jax.rules import Rule
from mmu_jax.trainable import Limits, Whole
from toys import Batches, Killed, dying, make_batch, random_factors, random_mask, run, same, streams


def test_plan_spreads_one_forget_pass_over_one_retain_pass():
    plan = Plan.of(methods.METHODS["mmunlearner"], streams(), 1.0)
    assert (plan.iterations, plan.spacing) == (8, 4)
    assert Plan.of(methods.METHODS["ga"], streams(), 1.0).iterations == 2
    assert Plan.of(methods.METHODS["grad_diff"], streams(), 3.0).iterations == 6


def test_any_stream_is_spread_over_any_other():
    phases = methods.Phase({"refusal": "descent"}, spread=True), methods.Phase({"text": "descent"})
    plan = Plan.of(methods.Method(phases), streams(), 2.0)
    assert (plan.iterations, plan.lap, plan.turns, plan.spacing) == (8, 4, 2, 2)
    assert [plan.turn(phases[0], i) for i in range(8)] == [0, None, 1, None, 2, None, 3, None]
    with pytest.raises(InputError, match="a phase that is not spread"):
        methods.Method(phases[:1])


def masked_only(**mask):
    phase = methods.Phase({"forget": "ascent"}, masked=True)
    return methods.Method((phase,), Rule(**mask))


def test_outside_the_mask_nothing_moves_and_inside_something_does(llava, monkeypatch):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params)
    monkeypatch.setitem(methods.METHODS, "masked", masked_only())
    state = run(model, params, "masked", mask=mask, adam={"weight_decay": 0.1}, clip=0.1)
    for name, before in trees.flatten(params).items():
        after, chosen = trees.flatten(state.params)[name], np.asarray(trees.flatten(mask)[name])
        changed = np.asarray(before) != np.asarray(after)
        assert not changed[~chosen].any(), name
        assert changed[chosen].all() or not chosen.any(), name
        outside, inside = np.asarray(state.moved[name])
        assert outside == 0 and inside == chosen.sum()


@pytest.mark.parametrize("name", ["mmunlearner", "mmunlearner_vision", "mmunlearner_language", "linear_only"])
def test_what_a_mask_never_selects_needs_no_gradient_and_no_moments(llava, name):
    folder, _, model = llava
    params, row = hf.load(folder, model), methods.METHODS[name]
    may = f"(?=(?:{model.family.sides.get(row.mask.side, '.*')})$){model.family.eligible}"
    mask = masks.restrict(random_mask(model, params), may)
    adam = {"eps": 1e-3}  # of a gradient that is nearly zero Adam makes its rounding a hundredth of a step
    restricted = run(model, params, name, mask=mask, trainable=Whole.of(row, model.family), adam=adam)
    kept = trees.flatten(restricted.opt_state["phase0"].mu)
    assert kept.keys() == {leaf for leaf in trees.flatten(params) if re.fullmatch(may, leaf)}
    assert len(trees.flatten(restricted.opt_state["phase1"].mu)) == len(trees.flatten(params)) > len(kept) > 0
    everything = run(model, params, name, mask=mask, adam=adam)
    for leaf, expected in trees.flatten(everything.params).items():
        np.testing.assert_allclose(trees.flatten(restricted.params)[leaf], expected, atol=1e-5, err_msg=leaf)
    assert sum(float(outside) for outside, _ in everything.moved.values()) == 0


_MASKED = methods.METHODS["mmunlearner"]
_AHEAD = dataclasses.replace(_MASKED.phases[0], lookahead=0.3)


@pytest.mark.parametrize(
    "method",
    [
        *(methods.METHODS[name] for name in ("mmunlearner_official", "ga")),
        dataclasses.replace(_MASKED, moments="shared"),
        dataclasses.replace(_MASKED, phases=(_AHEAD, _MASKED.phases[1])),
        dataclasses.replace(_MASKED, mask=dataclasses.replace(_MASKED.mask, clip="before")),
        dataclasses.replace(_MASKED, mask=dataclasses.replace(_MASKED.mask, unlisted="pass")),
        dataclasses.replace(_MASKED, mask=dataclasses.replace(_MASKED.mask, gradients_only=True)),
    ],
)
def test_what_acts_on_leaves_that_no_mask_selects_is_kept_there(llava, method):
    family = llava[2].family
    assert Whole.of(method, family).masked == () != Whole.of(_MASKED, family).masked


@pytest.mark.parametrize("leaves", ["(?i).*NORM.*/weight", r"(.*)/(input|post_attention)_layer\w*/weight"])
@pytest.mark.parametrize("side", ["both", "language"])
def test_what_a_rule_scores_itself_is_what_its_steps_see(llava, leaves, side):
    """As it stands, whatever else is asked of a leaf: a flag or a group of one pattern is not that of another."""
    abstract, family = llava[2].abstract(), llava[2].family
    method = dataclasses.replace(_MASKED, mask=dataclasses.replace(_MASKED.mask, leaves=leaves, side=side))
    part = Whole.of(method, family).view(abstract, None, Limits(), method.phases[0]).part
    scored = trees.flatten(trees.split(abstract, leaves)[0])
    of_side = {name for name in scored if side == "both" or re.fullmatch(family.sides[side], name)}
    assert trees.flatten(part).keys() == of_side and len(of_side) >= 2


def test_a_mask_of_what_no_step_would_move_is_refused(llava):
    folder, _, model = llava
    params, method = hf.load(folder, model), methods.METHODS["mmunlearner"]
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    with pytest.raises(InputError, match=r"found entries of 'language_model/embed_tokens/weight'; leave them out"):
        run(model, params, "mmunlearner", mask=ones, trainable=Whole.of(method, model.family))


def test_the_proof_sees_what_momentum_moves_outside_the_mask(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params)
    ours = run(model, params, "mmunlearner", mask=mask)
    official = run(model, params, "mmunlearner_official", mask=mask)
    assert sum(float(m[0]) for m in ours.moved.values()) == 0
    assert sum(float(m[1]) for m in ours.moved.values()) > 0
    assert sum(float(m[0]) for m in official.moved.values()) > 0


def test_a_mask_of_all_ones_is_grad_diff(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    # Bit for bit as optax transforms (test_transforms); here two programs are compiled, whose fusions round differently.
    # A large eps keeps Adam from turning rounding noise around zero gradients into full steps.
    masked = run(model, params, "mmunlearner", mask=ones, adam={"eps": 1e-3})
    plain = run(model, params, "grad_diff_alternate", adam={"eps": 1e-3})
    for name, expected in trees.flatten(plain.params).items():
        got = np.asarray(trees.flatten(masked.params)[name])
        np.testing.assert_allclose(got, np.asarray(expected), atol=1e-5, err_msg=name)  # lr 1e-3, 10 steps


def test_a_mask_of_all_zeros_is_retain_fine_tuning(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), params)
    same(run(model, params, "mmunlearner", mask=zeros).params, run(model, params, "retain_ft").params)


def test_masked_methods_refuse_no_mask_and_another_model_s(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    with pytest.raises(InputError, match="expected a mask for this method"):
        run(model, params, "mmunlearner")
    with pytest.raises(InputError, match="the mask does not fit this model"):
        run(model, params, "mmunlearner", mask={"w": jnp.ones(3, bool)})


def test_a_killed_run_ends_in_the_same_bits(llava, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params)
    straight = run(model, params, "mmunlearner", mask=mask, iterations=10)
    data = streams()
    dying(data["retain"], 7)
    with pytest.raises(Killed):
        run(model, params, "mmunlearner", mask=mask, iterations=10, where=tmp_path / "c", data=data)
    resumed = run(model, params, "mmunlearner", mask=mask, iterations=10, where=tmp_path / "c")
    same(straight, resumed)


def test_going_on_needs_no_more_memory_than_starting(llava, tmp_path, monkeypatch):
    """The given params make room for those of the checkpoint, and nothing is made twice."""
    folder, _, model = llava
    plan = Plan.of(methods.METHODS["grad_diff_alternate"], streams(), 1.0, learning_rate=1e-3)
    live, restore = [], checkpoint.Checkpoints.restore

    def look(*_):
        live.append(sum(x.nbytes for x in jax.live_arrays()))

    def restored(self, step, like):
        look()  # what is held while the checkpoint is read
        live[-1] += sum(x.nbytes if hasattr(x, "nbytes") else x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
        return restore(self, step, like)

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", restored)

    def go(stop):
        params, kept = hf.load(folder, model), checkpoint.Checkpoints(tmp_path / "c")
        look()
        start = live.pop() - trees.nbytes(params)

        def report(step, _):
            look()
            if step == stop:
                raise Killed

        options = dict(mesh=sharding.make_mesh(1), checkpoints=kept, save_every=4, report=report, report_every=1)
        with contextlib.suppress(Killed):
            train.fit(plan, model, params, streams(), **options)
        assert all(x.is_deleted() for x in jax.tree.leaves(params))
        kept.close()
        most = (max(live) - start) / trees.nbytes(model.abstract())
        live.clear()
        return most

    fresh = go(stop=6)
    assert 5 <= fresh < 5.5  # params and the moments of two phases
    assert go(stop=None) <= fresh + 0.01


def test_a_checkpoint_restores_onto_another_mesh(llava, tmp_path):
    folder, _, model = llava
    single, wide = sharding.make_mesh(1), sharding.make_mesh(4, 2)
    first = run(model, hf.load(folder, model), "grad_diff", iterations=5, where=tmp_path / "c", mesh=single)
    params = hf.load(folder, model, wide)
    plan = Plan.of(methods.METHODS["grad_diff"], streams(), 1.0)
    like = train_state.init(dataclasses.replace(plan, iterations=5), model, params, wide)
    restored = checkpoint.Checkpoints(tmp_path / "c").restore(5, like)
    same(restored, first)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, like))


@pytest.mark.parametrize("name, every", [("mmunlearner", "retain"), ("projected", "forget")])
def test_a_run_that_goes_on_with_other_devices_ends_where_it_would_have(llava, tmp_path, name, every):
    folder, _, model = llava
    what, made = {"mmunlearner": ("mask", random_mask), "projected": ("factors", random_factors)}[name]

    def go(devices, until=None, where=tmp_path / "c"):
        data, mesh = streams(), sharding.make_mesh(devices)
        dying(data[every], until)
        limits = {what: made(model, hf.load(folder, model, mesh))}
        options = {"learning_rate": 1e-4, "iterations": 12, "where": where, "mesh": mesh, "data": data}
        options["trainable"] = Whole.of(methods.METHODS[name], model.family)
        with pytest.raises(Killed) if until else contextlib.nullcontext():
            return run(model, hf.load(folder, model, mesh), name, **options, **limits)

    straight = go(1, where=None)
    go(1, 6)
    go(8, 11)
    assert checkpoint.Checkpoints(tmp_path / "c").latest == 10
    ended = trees.flatten(go(2).params)
    for leaf, expected in trees.flatten(straight.params).items():
        np.testing.assert_allclose(ended[leaf], expected, rtol=0, atol=1e-5, err_msg=leaf)


def test_nothing_of_the_past_changes_when_a_loss_is_not_finite(llava, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model)
    data = streams(retain=Batches("retain", 8, 2, poison=6))
    with pytest.raises(InputError) as error:
        run(model, params, "retain_ft", data=data, where=tmp_path / "c")
    text = str(error.value)
    assert "at step 6" in text and "retain rows [0, 1" in text and "last good checkpoint: step 5" in text
    assert checkpoint.Checkpoints(tmp_path / "c").latest == 5


def evidence(llava, mesh):
    """Params, scores of two sets, and the state after a step, on a mesh."""
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    batches = [sharding.put(make_batch(seed=s), mesh) for s in range(2)]

    def loss(params, batch):
        return objectives.take("descent", objectives.Seen(model, params), batch)

    with jax.set_mesh(mesh):
        options = {"leaves": model.family.eligible, "chunk": 4}
        forget = saliency.scores(loss, params, batches[:1], **options)
        retain = saliency.scores(loss, params, batches[1:], **options)
    return params, forget, retain, run(model, params, "grad_diff", iterations=1, mesh=mesh)


@pytest.fixture(scope="module")
def on_one_device(llava):
    with jax.default_matmul_precision("highest"):
        return evidence(llava, sharding.make_mesh(1))


def test_every_mesh_takes_the_same_step_scores_and_mask(llava, mesh, on_one_device):
    _, forget, retain, state = on_one_device
    params_b, forget_b, retain_b, state_b = evidence(llava, mesh)
    for name, expected in trees.flatten(forget).items():
        got = np.asarray(trees.flatten(forget_b)[name])
        assert np.abs(got - np.asarray(expected)).max() <= 1e-4 * np.abs(expected).max(), name
    mask, mask_b = masks.ratio(forget, retain), masks.ratio(forget_b, retain_b)
    for name, expected in trees.flatten(mask).items():
        f, r = (np.asarray(trees.flatten(t)[name]) for t in (forget, retain))
        # Sums in another order differ by 1e-6 of a tensor's largest score: small scores near the tie may flip.
        sure = np.abs(f - r) > 1e-3 * np.maximum(f, r) + 1e-6 * max(f.max(), r.max())
        np.testing.assert_array_equal(np.asarray(expected)[sure], np.asarray(trees.flatten(mask_b)[name])[sure])
        assert sure.mean() > 0.5
    for name, loss in state.history.items():
        np.testing.assert_allclose(np.asarray(loss), np.asarray(state_b.history[name]), rtol=1e-5)
    # Adam's first step is lr * sign(g): compare where the sign is not rounding noise, by the first moment.
    moments, moments_b = (trees.flatten(s.opt_state) for s in (state, state_b))
    for name, m in moments.items():
        if "/mu/" in name:
            m, other = np.asarray(m), np.asarray(moments_b[name])
            assert np.abs(m - other).max() <= 1e-4 * max(np.abs(m).max(), 1e-7), name
    assert jax.tree.all(
        jax.tree.map(lambda a, p: a.sharding.is_equivalent_to(p.sharding, p.ndim), state_b.params, params_b)
    )
