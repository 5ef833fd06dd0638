"""Edits of params without steps: every row does what its equation says, moves what it may, and is as strong as it has to be."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from mmu_jax import InputError, activations, edits, hf, methods, phases, sharding, trees
from mmu_jax.edits import EDITS
from mmu_jax.study import checks, records, settings, unlearning
from mmu_jax.study.study import Study
from runs import small_config
from toys import make_batch

# Edit -> params, evidence, options and what it makes of them, worked out on paper; two weights or neurons each.
TWO = jnp.array([[1.0, 2.0]])


def neurons(first, second):
    """Moments of two neurons that always say one number."""
    return jnp.array([[abs(first), abs(second)], [1, 1], [first, second], [first**2, second**2], [1, 1]], jnp.float32)


def mlp(up, down):
    return {"block": {"mlp": {"fc1": {"bias": None, "weight": up}, "fc2": {"bias": None, "weight": down}}}}


HAND = {
    # Scores 6 against 2: above alpha 2, and 2 / 6 is left. Scores 1 against 1: left alone.
    "ssd": (
        {"w": TWO},
        {"forget": {"w": jnp.array([[6.0, 1.0]])}, "vqa": {"w": jnp.array([[2.0, 1.0]])}},
        {"alpha": 2.0, "dampening": 1.0},
        {"w": [[1 / 3, 2.0]]},
    ),
    # The first neuron says three times as much of whom to forget, the second as much: half of them is the first.
    "manu": (
        mlp(jnp.ones((2, 1)), TWO),
        {"forget": mlp(None, neurons(3.0, 1.0)), "retain": mlp(None, neurons(1.0, 1.0))},
        {"share": 0.5},
        mlp([[0.0], [1.0]], [[0.0, 2.0]]),
    ),
    # One batch excites the first input e times, another e squared times as much as what is kept: exp(-0.5 (1 + 2)).
    "kvw": ({"w": TWO}, {"forget": {"w": jnp.array([3.0, 0.0])}}, {"gamma": 0.5}, {"w": [[math.exp(-1.5), 2.0]]}),
    # Training took the weights half up and one down.
    "task_vector": ({"w": TWO}, {"forget": {"w": TWO + jnp.array([[0.5, -1.0]])}}, {"scale": 2.0}, {"w": [[0.0, 4.0]]}),
    # Both updates have the norm 5. The first entry is 3 against 4 on the same side, the second 4 against 3 on the other: 4 > 3 k for k = 1.
    "smfa": (
        {"w": TWO},
        {"refusal": {"w": TWO + jnp.array([[3.0, 4.0]])}, "retain": {"w": TWO + jnp.array([[4.0, -3.0]])}},
        {"scale": 1.0, "k": 1.0},
        {"w": [[4.0, 2.0]]},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_number_worked_out_by_hand(name):
    params, evidence, options, expected = HAND[name]  # an edit without one fails
    found = EDITS[name].of(params, evidence, **options)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.array(y), rtol=1e-6), found, _arrays(expected))
    assert set(options) <= set(EDITS[name].options)
    applied = edits.apply(name, params, evidence, options[EDITS[name].strength], options)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), applied, found)


def _arrays(tree):
    return jax.tree.map(np.array, tree, is_leaf=lambda x: isinstance(x, list))


def test_of_two_opposed_updates_the_larger_alone_is_undone():
    params, evidence, options, _ = HAND["smfa"]
    kept = edits.smfa(params, evidence, **(options | {"k": 1.4}))  # 4 is no more than 1.4 times 3
    np.testing.assert_allclose(kept["w"], [[4.0, 6.0]])


# ---- on a model


def batches(seed):
    made = [make_batch(seed=seed + i) for i in range(2)]
    made[1]["weights"][3] = 0.0  # a row that only fills
    return made


def evidence_of(name, model, params, mesh):
    """What a row reads, of two batches of every stream; its scores and updates are random."""
    row, found = EDITS[name], {}
    put = {s: [sharding.put(b, mesh) for b in batches(10 * i)] for i, s in enumerate(row.streams, 1)}

    def each(stream, over):
        leaves = edits.NEURONS if row.reads == "moments" else row.leaves
        return activations.each(model, params, put[stream], leaves=leaves, over=over)

    with jax.set_mesh(mesh):
        for i, stream in enumerate(row.streams):
            if row.reads == "scores":
                part, rng = trees.split(params, model.family.eligible)[0], np.random.default_rng(i)
                found[stream] = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.random(p.shape), jnp.float32), part)
            elif row.reads == "moments":
                found[stream] = activations.total(each(stream, "tokens"))
            elif row.reads == "updates":
                rng = np.random.default_rng(i)
                moved = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in trees.flatten(params).items()}
                found[stream] = trees.map_named(lambda n, p, moved=moved: p + 0.01 * moved[n], params)
        if row.reads == "excess":
            own, kept = row.streams
            found[own] = edits.excess(each(own, "answers"), activations.total(each(kept, "answers")))
    return found


def strengths(row):
    """A weak one, and one that does more."""
    return (row.start / 4, row.start * 2) if row.limit > row.start else (row.start, row.start / 8)


@pytest.fixture(scope="module")
def made(llava):
    """Edit -> params before, evidence, and what a weak and a strong one make, on one device."""
    folder, _, model = llava
    mesh, found = sharding.make_mesh(1), {}
    params = hf.load(folder, model, mesh)
    for name, row in EDITS.items():
        evidence = evidence_of(name, model, params, mesh)
        options = {"alpha": 1.0} if name == "ssd" else {}
        found[name] = params, evidence, [edits.apply(name, params, evidence, s, options) for s in strengths(row)]
    return found


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_moves_what_it_may_and_more_the_stronger_it_is(made, llava, name):
    params, _, (weak, strong) = made[name]
    row, moved = EDITS[name], []
    for after in (weak, strong):
        far = 0.0
        for leaf, before in trees.flatten(params).items():
            now = np.asarray(trees.flatten(after)[leaf])
            assert np.isfinite(now).all() and now.dtype == before.dtype
            if not re.fullmatch(row.leaves or llava[2].family.eligible, leaf):
                np.testing.assert_array_equal(now, before, err_msg=leaf)
            far += float(np.square(now - np.asarray(before)).sum())
        moved.append(far)
    assert 0 < moved[0] < moved[1]


def test_an_edit_agrees_on_every_mesh(made, llava, mesh):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    for name, row in EDITS.items():
        _, expected, (_, strong) = made[name]
        # Of the same evidence, so that no entry stands on the other side of a threshold.
        like = params if row.reads in ("scores", "updates") else jax.tree.map(lambda _: None, params)
        placed = {stream: placed_as(like, tree) for stream, tree in expected.items()}
        options = {"alpha": 1.0} if name == "ssd" else {}
        found = edits.apply(name, params, placed, strengths(row)[1], options)
        for (leaf, x), p in zip(trees.flatten(found).items(), jax.tree.leaves(params), strict=True):
            assert x.sharding == p.sharding
            np.testing.assert_allclose(x, trees.flatten(strong)[leaf], rtol=1e-5, atol=1e-6, err_msg=leaf)


def placed_as(like, tree):
    """Where the params lie, or everywhere."""
    where = iter(jax.tree.leaves(trees.part(like, tree)))
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), getattr(next(where, None), "sharding", None)), tree)


def test_pruned_neurons_say_nothing_and_are_as_many_as_is_asked_for(made):
    params, evidence, _ = made["manu"]
    seen = trees.flatten(evidence["forget"])
    total = sum(math.prod(x.shape) // x.shape[-2] for x in seen.values())
    after = trees.flatten(edits.apply("manu", params, evidence, 0.25))
    gone = 0
    for name in seen:
        columns = ~np.asarray(after[name]).any(axis=-2)
        gone += columns.sum()
        for part in ("gate_proj", "up_proj", "fc1"):
            rows = name.replace("down_proj", part).replace("fc2", part)
            if rows in after and (part == "fc1") == ("fc2" in name):
                np.testing.assert_array_equal(~np.asarray(after[rows]).any(axis=-1), columns)
    assert gone == math.ceil(0.25 * total)


# ---- how much of it


@pytest.mark.parametrize(
    ("start", "limit", "edge"),
    [(1.0, math.inf, 7.3), (1.0, math.inf, 0.13), (1.0, 1.0, 0.3), (1.0, 0.0, 0.04), (1.0, 0.0, 9.0)],
)
def test_the_weakest_strength_that_reaches_is_found(start, limit, edge):
    rises = limit >= start

    def look(strength):
        return 0.0 if (strength >= edge) == rises or strength == edge else 1.0

    found, seen = edits.matched(look, lambda value: value <= 0.5, start=start, limit=limit, rises=rises)
    assert look(found) == 0.0 and max(found, edge) <= 1.02 * min(found, edge)
    assert seen[0] == (start, look(start)) and len(seen) <= 16 and len({s for s, _ in seen}) == len(seen)


def test_where_nothing_reaches_the_strongest_there_is_is_taken():
    assert edits.matched(lambda s: s, lambda value: False, start=0.1, limit=1.0)[0] == 1.0
    strength, seen = edits.matched(lambda s: s, lambda value: False, start=1.0, limit=math.inf, looks=5)
    assert strength == 16.0 and len(seen) == 5


# ---- rows


SLIPS = {
    "an edit that is none": (lambda: phases.Method((), edit="sdd"), "the edit of a method among .*ssd.* found 'sdd'"),
    "an option that is none": (
        lambda: phases.Method((), edit="ssd", options={"alfa": 1.0}),
        "options of the edit of a method among alpha, dampening, found 'alfa'",
    ),
    "options of no edit": (
        lambda: dataclasses.replace(methods.METHODS["ga"], options={"alpha": 1.0}),
        "options of the edit of a method among none, found 'alpha'",
    ),
    "no steps and no edit": (lambda: phases.Method(()), "a phase that is not spread"),
    "an update without its phase": (
        lambda: phases.Method((), edit="task_vector"),
        r"whose updates task_vector reads \(forget\), found none",
    ),
    "a phase that no edit reads": (
        lambda: phases.Method((phases.Phase({"forget": "ascent"}),), edit="ssd"),
        r"whose updates ssd reads \(none\), found forget",
    ),
    "a strength that is no option": (
        lambda: edits.Edit(edits.ssd, "scores", ("forget",), "beta"),
        "the strength of an edit among alpha, dampening, found 'beta'",
    ),
    "reading what there is not": (
        lambda: edits.Edit(edits.ssd, "guesses", ("forget",), "alpha"),
        "what an edit reads among .*scores.* found 'guesses'",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_a_row_is_named(slip):
    make, words = SLIPS[slip]
    with pytest.raises(InputError, match=words):
        make()


def test_what_an_edit_does_is_part_of_what_its_result_is_known_by():
    row = methods.METHODS["ssd"]
    assert row.arithmetic()["options"] == {"alpha": 1.0, "dampening": 1.0} and row.arithmetic()["edit"] == "ssd"
    assert dataclasses.replace(row, options={"alpha": 2.0}).arithmetic() != row.arithmetic()
    assert "edit" not in methods.METHODS["ga"].arithmetic()  # a workdir of before stays as it was


EDITED = [name for name, row in methods.METHODS.items() if row.edit]


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_is_refused_with_a_lora_and_where_what_it_measures_is_not_replayed(name):
    config = tiny.get_config()
    config.unlearn.methods = (name,)
    settings.judge(config, {})
    config.unlearn.lora.rank = 4
    with pytest.raises(InputError, match=rf"lora.rank=0 for {name}, found 4: an edit"):
        settings.judge(config, {})
    config.unlearn.lora.rank, config.unlearn.replay = 0, 0.0
    if methods.METHODS[name].edit == "task_vector":  # of whom to forget alone
        settings.judge(config, {})
    else:
        with pytest.raises(InputError, match=f"replay=0: {name}: "):
            settings.judge(config, {})


def test_a_strength_that_is_none_or_beyond_the_strongest_is_refused():
    config = tiny.get_config()
    config.unlearn.methods, config.unlearn.strength.manu = ("manu",), 1.5
    with pytest.raises(InputError, match=r"strength.manu \(share\) of 1 at the most, found 1.5"):
        settings.judge(config, {})
    with config.unlocked():
        del config.unlearn.strength.manu
    with pytest.raises(InputError, match="config.unlearn.strength.manu, found none; set it"):
        settings.judge(config, {})
    config = tiny.get_config()
    config.unlearn.methods, config.unlearn.strength.ssd = ("ssd",), 0.0
    with pytest.raises(InputError, match="a finite number above 0 in config.unlearn.strength.ssd"):
        settings.judge(config, {})
    config.unlearn.strength.ssd = 2.0
    assert settings.unused(config, {"unlearn.learning_rate.ssd": 1.0, "unlearn.epochs": 2.0, "saliency.rows": 8}) == [
        "config.unlearn.learning_rate.ssd is not read: it takes no steps",
        "config.unlearn.epochs is not read: no method takes steps",
    ]


def test_factors_of_inputs_are_a_methods_own(whole, tmp_path):
    config = small_config()
    config.vanilla.path, config.unlearn.methods = str(whole["llava"]), ("null_space", "vl_eraser", "ssd")
    table = Study(config, tmp_path / "w").stages.table
    assert "factors" not in table
    assert {"share", "text"} <= set(table["unlearn/null_space"].reads["factors"]) and "loss" not in table[
        "unlearn/vl_eraser"
    ].reads["factors"]
    assert settings.unused(config, {"factors.share": 0.9}) == []
    (line,) = settings.unused(config, {"factors.loss": "sketch"})
    assert "the factors of these methods are of inputs" in line
    needs = checks.needs(Study(config, tmp_path / "w").work, {"tokens": 32, "patches": 0})[0]
    assert "factors" not in needs and needs["unlearn/null_space"]["factors"] > 0 and needs["unlearn/ssd"]["scores"] > 0
    config.unlearn.methods = ("projected", "null_space")
    assert "factors" in Study(config, tmp_path / "w").stages.table


# ---- a run


def test_a_run_edits_as_strongly_as_its_stop_asks_for(whole, prepared, tmp_path, capsys):
    config = small_config()
    config.vanilla.path, config.data.path, config.attack.names = str(whole["llava"]), str(prepared), ()
    config.unlearn.methods, config.unlearn.learning_rate.task_vector = ("kvw", "task_vector"), 1e-3
    config.unlearn.stop.every, config.unlearn.stop.level, config.unlearn.epochs = 8, 0.001, 0.5
    study = Study(config, tmp_path / "w")
    study.work.planned = True  # which takes its time
    study.run(["data", "unlearn"])
    said = capsys.readouterr().out
    assert "edited without steps by kvw, gamma 0.02" in said and "1 leaves edited" in said
    for name in ("kvw", "task_vector"):
        result = records.read(tmp_path / "w", f"unlearn/{name}")["result"]
        row = EDITS[name]
        assert result["looks"][0][0] == row.start and 0 < result["changed_in_file"] < 1
        assert dict(map(tuple, result["looks"]))[result["strength"][row.strength]] == result["stopped"]["last"]
        assert (tmp_path / "w" / "unlearned" / name / "model.safetensors").exists()
    assert records.read(tmp_path / "w", "unlearn/task_vector")["result"]["iterations"] > 0
    with pytest.raises(InputError, match="a method that is its steps, found kvw"):
        unlearning.prepare(study.work, "kvw")
