"""What is hidden comes back under attack, what is gone does not; quantisation is the number worked out by hand."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from knowing import FORGOTTEN, Faces, benchmark, gone, hidden, vanilla
from mmu_jax import InputError, NotFiniteError, attacks, evaluate, hf, sharding, trees
from mmu_jax.data import streams, tiny
from mmu_jax.files import sealed
from mmu_jax.report import attacked
from mmu_jax.study import attacking, checks
from mmu_jax.study.study import Study
from runs import small_config
from toys import same

# ---- quantisation


@pytest.mark.parametrize(
    ("bits", "group", "given", "expected"),
    [
        (4, 0, [7.0, -2.4, 2.6, 0.4], [7.0, -2.0, 3.0, 0.0]),  # a step is 1
        (4, 2, [7.0, -2.4, 1.4, 0.33], [7.0, -2.0, 1.4, 0.4]),  # of the second pair, 0.2
        (8, 0, [127.0, -3.6, 0.4, 62.7], [127.0, -4.0, 0.0, 63.0]),
        (8, 0, [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_a_round_trip_is_the_number_worked_out_by_hand(bits, group, given, expected):
    made = attacks.models.round_trip(jnp.array([given]), bits=bits, group=group)
    np.testing.assert_allclose(made, [expected], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 130), (6, 64)])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 0)])
def test_an_entry_moves_by_half_a_step_at_most_and_the_second_time_not_at_all(shape, bits, group):
    weight = jax.random.normal(jax.random.key(0), shape) * 0.3
    trip = jax.jit(lambda x: attacks.models.round_trip(x, bits=bits, group=group))
    once = np.asarray(trip(weight))
    size, width = group or shape[-1], shape[-1]
    for start in range(0, width, size):  # the last group has fewer
        part = np.asarray(weight)[..., start : start + size]
        step = np.abs(part).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
        moved = np.abs(once[..., start : start + size] - part)
        assert (moved <= step / 2 * (1 + 1e-4)).all() and moved.max() > step.min() / 4
    np.testing.assert_array_equal(trip(once), once)


def test_values_on_the_grid_come_back_exactly():
    for bits in (4, 8):
        levels = 2 ** (bits - 1) - 1
        grid = jnp.arange(-levels, levels + 1)[None] * 2.0**-9
        np.testing.assert_array_equal(attacks.models.round_trip(grid, bits=bits), grid)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_linear_weights_alone_are_quantised_where_they_lie(llava, shape):
    (folder, _, model), mesh = llava, sharding.make_mesh(*shape)
    params = hf.load(folder, model, mesh)
    before, places = jax.device_get(params), jax.tree.map(lambda x: x.sharding, params)
    made = attacks.models.quantised(params, model.family.eligible, bits=4, group=64)
    assert jax.tree.map(lambda x: x.sharding, made) == places
    chosen = trees.flatten(trees.split(before, model.family.eligible)[0])
    for name, leaf in trees.flatten(before).items():
        expected = attacks.models.round_trip(jnp.asarray(leaf), bits=4, group=64) if name in chosen else leaf
        np.testing.assert_array_equal(trees.flatten(made)[name], expected)
        assert (name in chosen) == bool((np.asarray(trees.flatten(made)[name]) != leaf).any())
    with pytest.raises(InputError, match="matches none"):
        attacks.models.quantised(made, "nonsense", bits=4)


# ---- a model of faces


@pytest.fixture(scope="module")
def faces():
    processor = tiny.processor()
    return Faces(processor), processor


def curve(faces, params, name, learning_rate=0.05, data=None, steps=8):
    """Returned knowledge at every point of an attack."""
    (model, processor), row, data, mesh = faces, attacks.ATTACKS[name], data or benchmark(), sharding.make_mesh(1)
    ids = {p.id: i for i, p in enumerate(data.full)}
    examiner = evaluate.Examiner(model, processor, mesh, rows=4)
    items, split = attacks.facts.other_facts(data)
    assert split == "test" and {(i.person, i.answer) for i in items} == {
        *(("0", "Lima"), ("0", "yoga"), ("1", "Oslo"), ("1", "karate"))
    }
    taught = {}
    if row.trains:
        lesson = streams.stream(name, processor, row.lesson(data), model.album, people=ids, rows=2, seed=0)
        taught = {"lesson": lesson, "steps": steps, "learning_rate": learning_rate}
    scene = attacks.models.Scene(model, mesh, **taught)
    points = row.of(jax.tree.map(jnp.copy, params), scene, **row.options)
    found = [(step, attacks.facts.returned(examiner, now, items, model.album)) for step, now in points]
    assert all(value["n"] == 4 and value["people"] == 2 for _, value in found)
    return [step for step, _ in found], [value["mean"] for _, value in found]


@pytest.mark.parametrize("name", ["relearn_own", "relearn_benign"])
def test_relearning_brings_back_what_was_hidden_and_not_what_is_gone(faces, name):
    steps, known = curve(faces, vanilla(faces[0]), name)
    assert steps == [0, 1, 2, 4, 8] and min(known) > 0.99
    _, back = curve(faces, hidden(faces[0]), name)
    assert back[0] < 0.05 and back[-1] > 0.99 and back == sorted(back)
    _, never = curve(faces, gone(faces[0]), name)
    assert never[0] < 0.05 and never[-1] < 0.1


@pytest.mark.parametrize(
    ("name", "left", "level", "comes"),
    [
        ("int4", 0.55, 0.8, True),  # 0.55 is 1 on a grid of ones
        ("int4", 0.45, 0.8, False),  # and 0.45 is 0
        ("int8", 0.55, 0.8, False),  # the grid is 18 times as fine
        ("int8", 0.55, 0.5505, True),  # where little was needed, that little is undone
    ],
)
def test_a_coarse_grid_brings_back_what_a_small_step_hid(faces, name, left, level, comes):
    steps, known = curve(faces, faces[0].params(np.ones(12)), name)
    assert steps == [0, 1] and min(known) > 0.99
    params = faces[0].params(np.where(FORGOTTEN, left, 1.0), gate=100.0, level=level)
    _, back = curve(faces, params, name)
    assert back[0] < 0.05 and (back[1] > 0.99 if comes else back[1] < 0.05)


def test_relearning_compiles_its_step_once_for_all_models(faces, caplog):
    (model, processor), mesh, data = faces, sharding.make_mesh(1), benchmark()
    ids, made = {p.id: i for i, p in enumerate(data.full)}, []
    lesson = streams.stream("own", processor, attacks.facts.one_fact(data), model.album, people=ids, rows=2, seed=0)
    scene = attacks.models.Scene(model, mesh, lesson, steps=2, learning_rate=0.05)
    ends = []
    for start in (hidden, gone, hidden):
        caplog.clear()
        with jax.log_compiles():
            for _, params in attacks.models.relearn(jax.tree.map(jnp.copy, start(model)), scene):
                last = params
        ends.append(jax.device_get(last))
        told = [r.getMessage() for r in caplog.records]
        made.append(
            [name for name in ("gradient", "update") if any(f"XLA compilation of jit({name})" in m for m in told)]
        )
    assert made == [["gradient", "update"], [], []], "one program for three models"
    jax.tree.map(np.testing.assert_array_equal, ends[0], ends[2])
    assert np.abs(ends[0]["memory"]["weight"] - ends[1]["memory"]["weight"]).max() > 0.1


def test_the_rows_of_the_table_are_the_ones_that_succeed_and_fail_here():
    made = sorted(name for name, row in attacks.ATTACKS.items() if row.kind == "model")
    assert made == ["int4", "int8", "relearn_benign", "relearn_own"], "an attack without a test"


def test_an_attack_that_diverges_says_at_which_step(faces):
    with pytest.raises(
        NotFiniteError, match=r"while relearning.*at step \d+ in relearn_own rows.*lower the learning rate"
    ):
        curve(faces, hidden(faces[0]), "relearn_own", learning_rate=1e39)


def test_returned_knowledge_is_the_metric_of_the_report(faces):
    model, processor = faces
    examiner, items = evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=4), benchmark().test[0].generation
    found = attacks.facts.returned(examiner, model.params(np.ones(12), gate=0.0), items, model.album)
    # The answer is one of all tokens alike, the end of the turn is certain.
    assert found["mean"] == pytest.approx(len(processor.tokenizer) ** -0.5) and found["n"] == 3


# ---- what is taught, what is asked


def test_one_fact_is_taught_and_the_others_are_asked():
    data = benchmark()
    assert attacks.facts.taught_facts(data) == {"0": "baker", "1": "pilot"}
    assert {(e.person, e.answer) for e in attacks.facts.one_fact(data)} == {("0", "baker"), ("1", "pilot")}
    assert {e.person for e in attacks.facts.kept_people(data)} == {"2", "3"}
    items, split = attacks.facts.other_facts(dataclasses.replace(data, test=()))
    assert split == "full" and len(items) == 4


def test_where_generation_speaks_in_sentences_the_first_training_answer_is_taught():
    def spoken(person):
        said = [dataclasses.replace(e, answer=f"It is {e.answer}.") for e in person.generation]
        return dataclasses.replace(person, generation=tuple(said))

    data = benchmark(forget=tuple(map(spoken, benchmark().forget)), test=())
    assert attacks.facts.taught_facts(data) == {"0": "baker", "1": "pilot"}
    assert len(attacks.facts.other_facts(data)[0]) == 6  # of which none is what is taught, word for word


def test_a_data_set_with_one_fact_a_person_is_refused():
    few = tuple(dataclasses.replace(p, generation=p.generation[:1]) for p in benchmark().forget)
    named = {"attack.names": ()}  # by whoever typed it
    work = types.SimpleNamespace(benchmark=benchmark(forget=few, test=()), config=small_config(), given=named)
    with pytest.raises(InputError, match=r"attack relearn_own: expected generation items.*config\.attack\.names=\(\)"):
        attacking.left_out(work)
    work = types.SimpleNamespace(benchmark=benchmark(), config=small_config(), given=named)
    with work.config.unlocked():
        work.config.attack.names = ("all",)
    left = [name for name, row in attacks.ATTACKS.items() if row.kind in ("model", "question", "photo")]
    with pytest.raises(
        InputError, match="attack membership: .*unseen"
    ) as error:  # one photo each, nobody unseen, no answer twice
        attacking.left_out(work)
    assert f"config.attack.names={tuple(left)!r}" in str(error.value)
    work.given = {}  # the names are the config's own
    assert attacking.left_out(work).keys() == attacks.ATTACKS.keys() - set(left)


def test_an_attack_that_nobody_named_and_the_data_cannot_serve_is_left_out_and_the_report_says_why(tmp_path):
    config = small_config()
    config.attack.names = ("membership",)
    work = Study(config, tmp_path).work
    work.__dict__["benchmark"] = benchmark()  # nobody in it is unseen
    found = attacking.attack(work, "vanilla", "membership")
    kept = json.loads((tmp_path / "attacks" / "vanilla" / "membership.json").read_text())
    assert kept["left_out"] == found["left_out"] and "the split unseen" in found["left_out"]
    assert attacked.read(tmp_path, ["vanilla"], ["membership"]) == {}
    assert attacked.left_out(tmp_path, ["vanilla", "ga"], ["membership"]) == [f"Left out: {kept['left_out']}."]


def test_a_row_says_what_it_is():
    with pytest.raises(InputError, match="kind of attack among model.*, found 'poem'"):
        attacks.Attack("poem", attacks.models.quantise)
    with pytest.raises(InputError, match="options that quantise takes, found bit"):
        attacks.Attack("model", attacks.models.quantise, {"bit": 4})


# ---- the stages


def prints(config, where):
    found = Study(config, where).stages
    return {name: found.fingerprint(name) for name in found.table}


def test_a_stage_is_known_by_what_its_numbers_depend_on(tmp_path, monkeypatch):
    config = small_config()
    models, names = ("vanilla", "gold", "ga"), ("relearn_own", "relearn_benign", "int4", "paraphrase", "membership")
    config.unlearn.methods, config.attack.names = ("ga",), names
    before = prints(config, tmp_path)
    made = [f"attack/{model}/{name}" for model in models for name in names]
    assert list(before)[-16:] == [*made, "report"] and list(before).index("evaluate/ga") < list(before).index(made[0])
    config.attack.learning_rate = 1e-3
    after = prints(config, tmp_path)
    assert {n for n in after if after[n] != before[n]} == {*(n for n in made if "relearn" in n), "report"}
    config.attack.learning_rate = 1e-4
    monkeypatch.setitem(attacks.ATTACKS, "int4", dataclasses.replace(attacks.ATTACKS["int4"], source="elsewhere"))
    assert {n for n, value in prints(config, tmp_path).items() if value != before[n]} == {"report"}
    coarser = dataclasses.replace(attacks.ATTACKS["int4"], options={"bits": 3, "group": 64})
    monkeypatch.setitem(attacks.ATTACKS, "int4", coarser)
    changed = {n for n, value in prints(config, tmp_path).items() if value != before[n]}
    assert changed == {*(n for n in made if "int4" in n), "report"}
    monkeypatch.undo()
    config.evaluate.prompts.generation_text = "By name: {question}"
    changed = {n for n, value in prints(config, tmp_path).items() if value != before[n]}
    assert {n for n in changed if n.startswith("attack")} == {n for n in made if "paraphrase" in n}
    config = small_config()
    config.attack.names = ("membership", "int4")
    tables = [Study(config, tmp_path).stages.table for config.gold in (True, False)]
    assert [t["attack/vanilla/membership"].inputs for t in tables] == [("vanilla", "gold"), ("vanilla",)]
    assert all(t["attack/vanilla/int4"].inputs == ("vanilla",) for t in tables), (
        "what gold says is a reference of membership alone"
    )


def test_what_is_gone_or_was_only_begun_is_made_again_and_ends_in_the_same_numbers(whole, tmp_path):
    config = small_config()
    config.vanilla.path, config.gold, config.attack.names = str(whole["llava"]), False, ("relearn_own", "int4")
    wanted, files = ["data"], {}
    for name in config.attack.names:
        wanted.append(f"attack/vanilla/{name}")
        files[name] = tmp_path / "w" / "attacks" / "vanilla" / f"{name}.json"
    study = Study(config, tmp_path / "w")
    assert "attack" in checks.needs(study.work, {"tokens": 32, "patches": 0})[0]
    study.work.planned = True  # which takes its time, and is made above
    study.run(wanted)
    before = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert [p["step"] for p in before["relearn_own"]["points"]] == [0, 1, 2, 4] and before["int4"]["split"] == "test"
    assert before["int4"]["points"][0] == before["relearn_own"]["points"][0] | {"step": 0}
    assert set(before["int4"]["points"][0]) == {"step", "mean", "low", "high", "n", "people"}
    assert study.stages.wanted(wanted) == []
    files["int4"].unlink()
    record = tmp_path / "w" / "stages" / "attack" / "vanilla" / "relearn_own.json"
    record.write_text(json.dumps(sealed(json.loads(record.read_text()) | {"status": "started"})))
    assert study.stages.wanted(wanted) == wanted[1:]
    study.run(wanted)
    for name, path in files.items():
        same(json.loads(path.read_text())["points"], before[name]["points"])
    config.attack.names = ("int4",)
    assert "attack" not in checks.needs(Study(config, tmp_path / "w").work, {"tokens": 32, "patches": 0})[0]
