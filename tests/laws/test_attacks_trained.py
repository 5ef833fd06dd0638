"""Every attack on a LLaVA that was trained on the people to forget, and on one that was trained alike without them."""

import dataclasses
import io

import numpy as np
import pytest

from configs import tiny
from mmu_jax import membership
from mmu_jax.attacks import ATTACKS, facts, scores
from mmu_jax.data import loader
from mmu_jax.data.sets import faces
from mmu_jax.report.attacked import ends
from mmu_jax.study import attacking
from mmu_jax.study.study import Study

FORGOTTEN, KEPT = 6, 12
PHOTOS = 8  # new ones of everybody whom a probe of identity is asked about: of one each a share of six would be told

# By what an attack measures, how far above gold's level that of vanilla is, at least. Vanilla says what it knows at 0.8 and above and gold
# guesses at 0.1; roles and beginnings that training never saw cost vanilla up to a third of it. Of probes a fifth of the photos or of
# the answers is three or four people's. All members are told of vanilla (1.0), of gold as many as by chance (0.5).
ABOVE = {"knowledge": 0.3, "identity": 0.2, "read": 0.3, "auc": 0.3}

# Attacks that honestly do not succeed on a model this small, and what holds instead (tests/laws/test_asked_otherwise.py and test_traces.py have
# the models on which they do).
GUESSED = {
    "no_photo": "what the model knows of a person hangs on the photo; without it, it says what is said most often",
    "figstep": "of a canvas of 1024 x 768 pixels it sees 24 x 24, in which nothing can be read",
}
SEEN = {
    "probe_vision": "whose face it is can be seen in what any trained tower makes of it: gold's tells nearly as much as vanilla's",
}


def photo(person, rng):
    """A new photo of somebody whose photos are those of scikit-image, as the split test has them."""
    buffer = io.BytesIO()
    faces.test_photo(faces.photographs()[int(person)], rng).save(buffer, "PNG")
    return buffer.getvalue()


def more(people):
    """The same people with more new photos, the same at every call."""
    drawn = {p.id: np.random.default_rng((1, int(p.id))) for p in people}
    return tuple(dataclasses.replace(p, photos=tuple(photo(p.id, drawn[p.id]) for _ in range(PHOTOS))) for p in people)


@pytest.fixture(scope="module")
def work(prepared, tmp_path_factory):
    """A study of eighteen faces whose models vanilla and gold a run's own stages have trained, in some twenty seconds of a processor."""
    config = tiny.get_config()
    config.data.path, config.data.others = str(prepared), False
    config.data.forget, config.data.retain = f"forget_10[:{FORGOTTEN}]", f"retain_90[:{KEPT}]"
    config.data.tokens = (26, 128)  # of training, and whatever is put around a question
    config.model.vision.update(hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    config.model.text.update(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    config.vanilla.rows.update(vqa=32, text=0)
    config.vanilla.epochs, config.vanilla.learning_rate = 14.0, 4e-3
    config.evaluate.rows, config.evaluate.samples = 24, 200
    config.attack.names, config.attack.steps = ("all",), 8
    study = Study(config, tmp_path_factory.mktemp("trained"))
    study.work.planned = True  # which takes its time, and is tested elsewhere
    study.run(["data", "base", "vanilla", "gold"])
    return study.work


def level(work, model, name):
    """``(before, after, all that an attack says)`` of a model."""
    on = attacking.ground(work, name)
    if ATTACKS[name].kind == "probe":
        new = {split: more(getattr(on.benchmark, split)) for split in ("test", "retain_test")}
        albums = on.albums | {split: loader.album(work.processor, people) for split, people in new.items()}
        on = dataclasses.replace(on, benchmark=dataclasses.replace(on.benchmark, **new), albums=albums)
    params = work.load(work.folder(model), consumed=ATTACKS[name].kind == "model")
    found = attacking.measure(work, params, name, f"{model}/{name}", on)
    return *ends(found), found


def test_vanilla_knows_everyone_and_gold_those_to_keep(work):
    known = {}
    for model in ("vanilla", "gold"):
        params = work.load(work.folder(model))
        for split in ("forget", "retain"):
            items = work.asked_by_photo(split)
            known[model, split] = facts.returned(work.examiner, params, items, work.albums["full"])["mean"]
    assert min(known[where] for where in known if where != ("gold", "forget")) > 0.9, known
    assert known["gold", "forget"] < 0.25, known


@pytest.mark.parametrize("name", ATTACKS)
def test_it_succeeds_on_vanilla_and_fails_on_gold(work, name):
    (plain, back, found), (guess, left, _) = (level(work, model, name) for model in ("vanilla", "gold"))
    told = f"vanilla {plain['mean']:.3f} -> {back}, gold {guess['mean']:.3f} -> {left}"
    if name in GUESSED:
        assert plain["mean"] > 0.8 and max(back["mean"], left["mean"]) < plain["mean"] / 2, told
        return
    if name in SEEN:
        assert back["mean"] > 0.5 and left["mean"] > 2 * guess["mean"], told
        return
    assert back["mean"] > left["mean"] + ABOVE[found["measures"]], told
    if found["measures"] == "knowledge":
        assert back["low"] > left["high"], told
        # The most telling of several guesses is a better one, of gold as of any model.
        assert guess["mean"] < 0.25 and left["mean"] < guess["mean"] + 0.15, told
    elif found["measures"] == "read":
        assert back["low"] > guess["mean"] >= left["low"] and left["mean"] < guess["mean"] + 0.15, told
    elif found["measures"] == "auc":
        assert plain["mean"] == guess["mean"] == 0.5 and back["n"] == 5 * FORGOTTEN
        assert back["low"] > 0.9 and left["low"] <= 0.5 <= left["high"] and 0.25 < left["mean"] < 0.75, told
        assert all(value.keys() >= {"mean", "low", "high", "tpr"} for value in found["variants"].values())


def test_what_gold_says_is_a_reference(work):
    """Of gold itself the difference is 0 and tells nothing; a model that was trained on members says more of them than gold does."""
    row, against = ATTACKS["membership"], attacking.ground(work, "membership")
    found = row.measure(work.load(work.vanilla), work.examiner, against)
    gold = work.load(work.folder("gold"))
    of_gold = row.measure(gold, work.examiner, against)
    assert of_gold["variants"]["reference"]["mean"] == 0.5 and found["variants"]["reference"]["mean"] > 0.9
    alone = row.measure(gold, work.examiner, dataclasses.replace(against, reference=None))
    assert "reference" not in alone["variants"] and alone["after"] == of_gold["after"]
    made = [
        membership.scores(said, texts=[e.answer for e in side.items])
        for said, side in zip(against.reference, scores.sides(against), strict=True)
    ]
    assert of_gold["after"]["mean"] == membership.auc(*(each["loss"] for each in made))
    assert np.mean(list(of_gold["each"]["after"].values())) == pytest.approx(of_gold["after"]["mean"], abs=1e-5)


def test_every_exception_is_an_attack_that_a_model_made_by_hand_gives_way_to():
    assert {ATTACKS[name].kind for name in GUESSED} == {"question", "photo"} and not GUESSED.keys() & SEEN.keys()
    assert {ATTACKS[name].kind for name in SEEN} == {"probe"}
