"""What is left inside: probes find a trace where there is one, and none where nobody was ever taught."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from knowing import FACTS, benchmark, people, photo
from mmu_jax import InputError, attacks, evaluate, hf, models, sharding
from mmu_jax.attacks import facts, probe, reading, scores
from mmu_jax.data import IMAGE, Example, Person, builders, loader, streams, tiny

# ---- probes, on features by hand

SHADES, SIZE = 16, 12  # people, told apart by the grey of their photos; features


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def person(i, asked="What is the {} of this person?", photos=1):
    said = {fact: values[i * (1 + 2 * k) % 4] for k, (fact, values) in enumerate(FACTS.items())}
    items = tuple(Example(f"{i}", IMAGE, asked.format(fact), value) for fact, value in said.items())
    return Person(f"{i}", f"Person {i}", (photo(i / 5),) * photos, items, (), (), items)


@pytest.fixture(scope="module")
def crowd(processor):
    """Sixteen people of whom three answers each are shared with others; four are to be forgotten."""
    everyone, new = (tuple(person(i, photos=n) for i in range(SHADES)) for n in (2, 1))
    data = benchmark(full=everyone, forget=everyone[:4], retain=everyone[4:], test=new[:4], retain_test=new[4:])
    splits = {"full": everyone, "test": new[:4], "retain_test": new[4:]}
    return facts.Ground(data, {name: loader.album(processor, who) for name, who in splits.items()})


@pytest.fixture(scope="module")
def examiner(processor):
    return evaluate.Examiner(types.SimpleNamespace(), processor, sharding.make_mesh(1), rows=16, samples=50)


def seen(model, params, batch):
    """A row of features by the person in the photo and the fact in question, and noise that tells nothing."""
    shade = batch["pixels"][batch.get("photo", jnp.arange(len(batch["tokens"])))].mean(axis=(1, 2, 3, 4))
    fact = (batch["tokens"][:, :, None] == params["facts"]).any(axis=1).argmax(axis=1)
    row = params["table"][jnp.abs(shade[:, None] - params["shades"]).argmin(axis=1), fact]
    return {"told": row, "nothing": jnp.stack([jnp.ones(len(row)), jnp.arange(len(row)) % 2.0], axis=1)}


def features(crowd, processor, table):
    """Params of :func:`seen`: ``table [people, facts, D]``."""
    album = crowd.albums["full"]
    shades = [album.pictures[album.photos[f"{i}"][0]].array.mean() for i in range(SHADES)]
    token = [processor.tokenizer(f"x {fact}", add_special_tokens=False)["input_ids"][-1] for fact in FACTS]
    return {"table": jnp.asarray(table), "shades": jnp.array(shades), "facts": jnp.array(token)}


def knowing(who, rng):
    """Features that hold the answers about people ``who``, of all others noise."""
    table = rng.normal(0, 0.3, (SHADES, len(FACTS), SIZE))
    for i in who:
        for k, item in enumerate(person(i).generation):
            table[i, k, list(FACTS.values())[k].index(item.answer)] += 2.0
    return table


def test_answers_are_read_out_of_features_that_hold_them_and_of_no_others(crowd, processor, examiner):
    rng = np.random.default_rng(0)
    for who, low, high in ((range(SHADES), 0.9, 1.0), (range(4, SHADES), 0.0, 0.5)):
        params = features(crowd, processor, knowing(who, rng))
        found = reading.measure(seen, params, examiner, crowd)
        assert found["others"]["told"] > 0.9 > 0.5 > found["others"]["nothing"]
        assert low <= found["after"]["mean"] <= high and found["after"] == found["variants"]["told"]
        assert found["before"]["mean"] == pytest.approx(0.25) and found["after"]["people"] == 4


def test_people_are_told_apart_by_features_that_differ_and_by_no_others(crowd, processor, examiner):
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(size=(SHADES, 1, SIZE)), len(FACTS), axis=1)
    alike = own.copy()
    alike[:4] = alike[0]  # the forgotten
    for table, low, high in ((own, 0.99, 1.0), (alike, 0.0, 0.3)):
        found = probe.measure(seen, features(crowd, processor, table), examiner, crowd)
        assert low <= found["after"]["mean"] <= high and found["after"]["n"] == 4
        assert found["others"] == {"told": 1.0, "nothing": pytest.approx(0.17, abs=0.17)}
        assert found["before"]["mean"] == 0.1, "four to forget and half of the twelve others"


def test_nothing_of_a_probe_but_its_head_is_made_on_candidates(crowd):
    candidates, others = probe.parted(crowd.benchmark, 0)
    assert candidates[:4] == ["0", "1", "2", "3"] and not set(candidates) & set(others)
    assert len(candidates) == 10 and len(others) == 6
    rng = np.random.default_rng(0)
    who, new = np.repeat([*candidates, *others], 2), np.tile([False, True], 16)
    shots = probe.Shots(who, new, rng.normal(size=(32, 5)))
    moved = shots._replace(x=np.where(np.isin(who, candidates)[:, None], 9.0, shots.x))
    fresh = shots._replace(x=np.where(new[:, None], 9.0, shots.x))
    for other in (moved, fresh):  # what is scaled by others, and by photos that are not new, does not see what changed
        same = np.isin(who, others) & ~new
        np.testing.assert_array_equal(probe.scaled(shots, others).x[same], probe.scaled(other, others).x[same])
    assert {item.person for item in reading.asked(crowd.benchmark)[0]}.isdisjoint(crowd.benchmark.forget_ids)


def test_a_new_photo_is_one_of_the_test_split_or_the_last_of_training():
    data = benchmark(full=tuple(person(i, photos=3) for i in range(4)))
    there = probe.photos_of(data)
    assert there["0"] == ([("full", 0), ("full", 1)], [("test", 0)])
    assert there["2"] == ([("full", 0), ("full", 1)], [("full", 2)])
    assert probe.photos_of(benchmark(test=())) == {}
    with pytest.raises(InputError, match="two photos or more .* found 0 such to forget and 0 to keep"):
        probe.check(benchmark(test=()))


def test_a_ridge_is_that_of_the_normal_equations():
    rng = np.random.default_rng(0)
    x, of, new = rng.normal(size=(12, 5)), np.arange(12) % 3, rng.normal(size=(40, 5))
    centred = x - x.mean(axis=0)
    targets = np.eye(3)[of] - np.eye(3)[of].mean(axis=0)
    strength = 0.1 * (centred**2).sum() / 12
    weight = np.linalg.solve(centred.T @ centred + strength * np.eye(5), centred.T @ targets)
    want = ((new - x.mean(axis=0)) @ weight + np.eye(3)[of].mean(axis=0)).argmax(axis=1)
    np.testing.assert_array_equal(probe.ridge(x, of, 0.1)(new), want)


# ---- probes, on a network


@pytest.fixture(scope="module")
def faces(prepared, whole):
    """Twelve faces with three photos each and a network of random weights."""
    data, folder = builders.read(prepared, forget="forget_10", retain="retain_90"), whole["llava"]
    fewer = {p.id: dataclasses.replace(p, photos=p.photos[:3]) for p in data.full}
    kept = tuple(p for p in data.retain if p.id in fewer)[:8]
    chosen = {p.id for p in (*data.forget[:4], *kept)}
    data = dataclasses.replace(data, full=tuple(p for p in fewer.values() if p.id in chosen), forget=data.forget[:4], retain=kept,
                               test=data.test[:4], retain_test=tuple(p for p in data.retain_test if p.id in chosen))  # fmt: skip
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    examiner = evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=16, samples=50)
    albums = {name: loader.album(processor, getattr(data, name)) for name in ("full", "test", "retain_test", "unseen")}
    return facts.Ground(data, albums), examiner, model.init(0)


@pytest.mark.parametrize("name", ["probe_vision", "probe_hidden"])
def test_a_network_that_sees_tells_faces_apart_and_one_that_is_blind_does_not(faces, name):
    ground, examiner, params = faces
    blind = params | {"multi_modal_projector": jax.tree.map(jnp.zeros_like, params["multi_modal_projector"])}
    for given, low, high in ((params, 0.7, 1.0), (blind, 0.0, 0.5)):
        found = attacks.ATTACKS[name].measure(given, examiner, ground)
        assert low <= found["after"]["mean"] <= high, found
        assert set(found["each"]["after"]) == set(ground.benchmark.forget_ids)


def test_features_are_those_of_the_image_and_of_the_last_word_of_the_prompt(faces):
    ground, examiner, params = faces
    items = [next(i for i in p.generation if i.kind == IMAGE) for p in ground.benchmark.test]
    made = {
        **probe.features(probe.visual, params, examiner, items, ground.albums["test"]),
        **probe.features(lambda *given: probe.hidden(*given, layers=(1.0,)), params, examiner, items, ground.albums["test"]),
    }  # fmt: skip
    for i, item in enumerate(items):
        album = ground.albums["test"]
        texts = loader.text.encode_prompts(examiner.processor, [item.question], 1)
        batch = streams.batch(examiner.sizes, texts, [0], [[album.pictures[album.of(item)[0]]]])
        found, there = examiner.model.features(params, batch)
        np.testing.assert_allclose(made["projected"][i], found[0][there[0]].mean(axis=0), atol=1e-5)
        states = examiner.model.states(params, batch, 1.0)
        np.testing.assert_allclose(made["at 100% of the depth"][i], states[0, -1], atol=1e-5)


# ---- scores


def test_both_sides_are_asked_in_the_same_words():
    everyone = tuple(people())
    asked = dataclasses.replace(everyone[2], generation=everyone[2].generation[:2])
    members, others = scores.matched(benchmark(unseen=(asked,)))
    assert [item.question for item in others] == [item.question for item in asked.generation]
    assert {item.question for item in members} == {item.question for item in others} and len(members) == 4
    unlike = tuple(dataclasses.replace(e, question=f"Say: {e.question}") for e in asked.generation)
    members, others = scores.matched(benchmark(unseen=(dataclasses.replace(asked, generation=unlike),)))
    assert len(members) == 6 and len(others) == 2, "no words in common: all of both"
    with pytest.raises(InputError, match="people never seen .the split unseen., found 6 and 0; leave membership out"):
        scores.matched(benchmark())


def test_every_attack_that_reads_features_is_asked_here():
    made = {name for name, row in attacks.ATTACKS.items() if row.kind in ("probe", "reading")}
    assert made == {"probe_vision", "probe_hidden", "probe_facts"}, "one without a test"
