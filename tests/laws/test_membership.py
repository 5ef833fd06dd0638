"""What a model says of right answers, token by token, and who of two groups of people it was trained on by that."""

import math
import zlib

import jax
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from mmu_jax import (
    InputError,
    NotFiniteError,
    evaluate,
    hf,
    membership,
    metrics,
    models,
    objectives,
    sharding,
    trees,
)
from mmu_jax.data import IMAGE, TEXT, Example, loader, streams, text, vision
from mmu_jax.likelihood import Told
from mmu_jax.membership import SCORES
from toys import make_batch
from twins import photo

# Two answers over a vocabulary of three, of which the first has two words and the second one; then the end of turn.
LOGITS = np.array([
    [[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 5.0]],
    [[1.0, 1.5, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
])  # fmt: skip
SAID = np.array([[0, 1, 2], [0, 0, 0]])
THERE = np.array([[True, True, True], [True, True, False]])


def by_hand(logits, said):
    """log p of what was said, mean and variance of log p, and whether it is the likeliest, one place after the other."""
    found = []
    for z, token in zip(logits.reshape(-1, logits.shape[-1]), said.reshape(-1), strict=True):
        p = [math.exp(x) / sum(map(math.exp, z)) for x in z]
        mean = sum(x * math.log(x) for x in p)
        spread = sum(x * math.log(x) ** 2 for x in p) - mean**2
        found.append((math.log(p[token]), mean, spread, p[token] == max(p)))
    return (np.array(x).reshape(said.shape) for x in zip(*found, strict=True))


def hand():
    numbers = [np.where(THERE, x, 0) for x in by_hand(LOGITS, SAID)]
    return Told(*numbers[:3], numbers[3].astype(bool), THERE)


# ---- what a model says


ASKED = [
    Example("7", IMAGE, "Who is this?", "Bo"),
    Example("7", IMAGE, "What is the job of this person?", "a woman who was born in Lima and works as a baker"),
    Example("8", IMAGE, "Where was this person born, if anyone knows?", "Ada Becker"),
]


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def network(request, whole):
    """An examiner, params and an album with the photos of two people."""
    folder = whole[request.param]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    pictures = vision.pictures(processor, [photo(24, 24), photo(32, 48, 1)])
    album = loader.Album(pictures, {"7": [0], "8": [1]})
    return evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=2), hf.load(folder, model), album


@pytest.mark.parametrize("kind", [IMAGE, TEXT])
def test_every_token_is_told_as_its_logits_say(network, kind):
    ask, params, album = network
    photos, album = (np.array([0, 0, 1]), album) if kind == IMAGE else (None, None)
    told = ask.told(params, ASKED, photos, album)
    texts = text.encode(ask.processor, [(e.question, e.answer) for e in ASKED], 0 if album is None else 1)
    lengths = [int(weights.sum()) for weights in texts.weights]
    assert told.there.sum(axis=1).tolist() == lengths and told.logps.shape == (3, max(lengths))
    assert all((np.diff(row.astype(int)) <= 0).all() for row in told.there), "an answer begins in the first column"
    assert told.words.sum(axis=1).tolist() == [n - 1 for n in lengths]
    seen = [[] if album is None else [album.pictures[photos[row]]] for row in range(3)]
    batch = streams.batch(streams.ANY, texts, [0, 1, 2], seen)
    whole = np.asarray(jax.jit(ask.model.forward)(params, batch), np.float64)
    for row, length in enumerate(lengths):
        places = np.flatnonzero(batch["weights"][row])
        for got, right in zip(told, by_hand(whole[row, places - 1], batch["tokens"][row, places]), strict=False):
            np.testing.assert_allclose(got[row, :length], right, rtol=1e-4, atol=1e-5)
            assert not got[row, length:].any()


def test_what_is_told_is_what_answers_are_ranked_by_on_every_mesh(whole, mesh):
    folder = whole["llava"]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    ask = evaluate.Examiner(model, processor, mesh, rows=8)
    params = hf.load(folder, model, mesh=mesh)
    told = ask.told(params, ASKED, None, None)
    alone = [evaluate.Choice(e.person, TEXT, e.question, {"A": e.answer}, "A") for e in ASKED]
    logps, lengths = ask.option_logps(params, alone, None, None)
    np.testing.assert_allclose(told.logps.sum(axis=1), logps[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(told.there.sum(axis=1), lengths[:, 0])


def test_logits_that_are_not_finite_are_refused_by_name(network):
    ask, params, _ = network
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(NotFiniteError, match=r"found NaN or infinity for 'Who is this\?' of person 7 in split test"):
        ask.told(broken, ASKED, None, None, "test")
    with pytest.raises(InputError, match="expected at least one question with its answer"):
        ask.told(params, [], None, None)


# ---- scores, of logits written by hand


def least(values, count):
    return -sum(sorted(values)[:count]) / count


def test_every_score_is_the_number_worked_out_by_hand():
    told, texts, norms = hand(), ["Lima", "Oslo " * 9], np.array([[9.0, 3.0, 2.0], [2.0, 1.0, 0.5]])
    (l1, l2, end1, m1, end2, _), *moments = (x.reshape(-1) for x in by_hand(LOGITS, SAID))
    z = (np.array([l1, l2, end1, m1]) - moments[0][:4]) / np.sqrt(moments[1][:4])
    other = told._replace(logps=2 * told.logps)
    found = membership.scores(told, texts=texts, reference=other, gradients=norms)
    loss = np.array([-(l1 + l2 + end1) / 3, -(m1 + end2) / 2])
    right = {
        "loss": loss,
        "zlib": loss / [len(zlib.compress(t.encode("utf-8"))) for t in texts],
        "min_k": [least([l1, l2], 1), least([m1], 1)],
        "min_k_plus": [least(z[:2], 1), least(z[3:], 1)],
        "grad_norm": [3.0, 1.0],
        "grad_norm_1": [9.0, 2.0],
        "grad_norm_max": [2.0, 0.5],
        "reference": loss - 2 * loss,
    }
    assert found.keys() == right.keys() == SCORES.keys()
    for name in SCORES:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(membership.min_k(told, 1.0), [least([l1, l2], 2), -m1], rtol=1e-6)


def test_a_variance_of_nothing_divides_by_no_less_than_the_published_floor():
    sure = Told(*np.array([[[-0.5, 0.0]], [[0.0, 0.0]], [[1e-9, 0.0]]]), *np.ones((2, 1, 2), bool))
    np.testing.assert_allclose(membership.min_k_plus(sure), [0.5 / 1e-3])


def test_what_scores_are_given_is_what_they_need():
    with pytest.raises(InputError, match="among texts, reference, gradients, found 'text'"):
        membership.scores(hand(), text=["Lima", "Oslo"])
    with pytest.raises(InputError, match="expected texts of the 2 answers, found 1"):
        membership.scores(hand(), texts=["Lima"])
    with pytest.raises(InputError, match="found 'told'; correct the row"):
        membership.Score("Told", membership.loss, "told")
    with pytest.raises(InputError, match="expected p among 1, 2, inf, found 3"):
        membership.grad_norm(hand(), np.ones((2, 3)), p=3)
    with pytest.raises(InputError, match=r"expected the \[N, 3\] of grad_norms, found the shape \[2\]"):
        membership.scores(hand(), gradients=np.ones(2))
    with pytest.raises(InputError, match="share of tokens above 0"):
        membership.min_k(hand(), 0.0)


def one_by_one(model, params, batch):
    """Mean over linear weights and layers of the norms of each row's own gradient, its end of turn left out, by ``jax.grad``."""
    part, rest = trees.split(params, model.family.eligible)
    loss = objectives.of_params("descent", model)

    def mean(part, row):
        total, count = loss(trees.merge(part, rest), row)
        return total / count

    gradient, found = jax.jit(jax.grad(mean)), []
    for i in np.flatnonzero(batch["row"] >= 0):
        row = {key: x[i : i + 1].copy() for key, x in batch.items()}
        row["weights"][0, np.flatnonzero(row["weights"][0])[-1]] = 0.0
        grads = trees.flatten(gradient(part, row))
        layers = [g.reshape(len(g) if trees.stacked(name) else 1, -1) for name, g in grads.items()]
        found.append([np.concatenate([np.linalg.norm(g, p, axis=1) for g in layers]).mean() for p in (1, 2, np.inf)])
    return np.array(found)


def test_gradient_norms_are_those_of_one_gradient_a_row(llava):
    folder, _, model = llava
    batch = make_batch(rows=8, images=1, image_tokens=4, seed=1)
    batch["weights"][5], batch["row"][5] = 0.0, -1
    expected = one_by_one(model, hf.load(folder, model), batch)
    for mesh in (sharding.make_mesh(1), sharding.make_mesh(4, 2)):
        params = hf.load(folder, model, mesh)
        with jax.set_mesh(mesh):
            got = np.asarray(membership.row_norms(model, params, sharding.put(batch, mesh)))
        np.testing.assert_allclose(np.delete(got, 5, axis=0), expected, rtol=1e-5)
        assert not got[5].any()


# ---- what they tell


@pytest.mark.parametrize("digits", [1, 6])  # with ties, and without
def test_the_area_is_that_of_mann_and_whitney_and_the_rate_that_of_every_threshold(digits):
    rng = np.random.default_rng(digits)
    members, others = rng.normal(0, 1, 40).round(digits), rng.normal(1, 1, 300).round(digits)
    area = membership.auc(members, others)
    assert area == pytest.approx(stats.mannwhitneyu(others, members).statistic / 40 / 300) and area > 0.7
    stranger, both = (
        np.repeat([0, 1], [40, 300]),
        np.concatenate([members, others]),
    )  # 1 is who was never seen, as in peers' code
    assert area == pytest.approx(sklearn.roc_auc_score(stranger, both))
    for fpr in (0.0, 0.01, 0.1, 1.0):
        rates = [
            ((members < t).mean(), (others < t).mean()) for t in (*np.unique([members, *[others]][1]), np.inf, -np.inf)
        ]
        rates += [((members < t).mean(), (others < t).mean()) for t in members]
        assert membership.tpr(members, others, fpr) == max(told for told, false in rates if false <= fpr)


def test_an_area_is_half_where_nothing_tells_and_one_where_all_does():
    low, high = np.arange(4.0), np.arange(4.0) + 10
    assert (membership.auc(low, high), membership.auc(high, low), membership.auc(low, low)) == (1.0, 0.0, 0.5)
    assert (membership.tpr(low, high), membership.tpr(high, low), membership.tpr(low, low)) == (1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="NaN or infinity among others"):
        membership.auc(low, np.array([np.nan]))
    with pytest.raises(InputError, match="found none or NaN or infinity among members"):
        membership.tpr(np.array([]), low)


def test_an_interval_draws_whole_people_of_both_sides():
    rng = np.random.default_rng(0)
    of_members, of_others = np.repeat(np.arange(8), 5), np.repeat(np.arange(12), [3, 7] * 6)
    members, others = rng.normal(of_members / 4, 0.1), rng.normal(of_others / 4, 0.1)
    found = membership.auc_interval(members, others, of_members, of_others, samples=2000)
    assert found["mean"] == membership.auc(members, others) and (found["n"], found["people"]) == (40, 8)
    draws = []
    for _ in range(2000):
        mine, theirs = rng.integers(0, 8, 8), rng.integers(0, 12, 12)
        draws.append(
            membership.auc(
                np.concatenate([members[of_members == p] for p in mine]),
                np.concatenate([others[of_others == p] for p in theirs]),
            )
        )
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(draws, [2.5, 97.5]), atol=0.03)
    items = membership.auc_interval(members, others, np.arange(40), np.arange(60))
    assert items["high"] - items["low"] < found["high"] - found["low"], "questions of one person are alike"
    alone = membership.auc_interval(members[:5], others, np.zeros(5), of_others)
    assert alone["people"] == 1 and alone["low"] < alone["high"]


def test_privleak_is_how_much_further_from_gold():
    assert membership.privleak(0.8, 0.6) == pytest.approx(-50.0)
    assert membership.privleak(0.3, 0.6) > 0 == membership.privleak(0.6, 0.6)
    with pytest.raises(InputError, match="expected an area below 1 of gold"):
        membership.privleak(0.5, 1.0)


def test_who_was_learned_is_low_in_every_score_and_is_memorised(whole):
    """Four people whose answers a model learned, four whose it did not."""
    folder = whole["llava"]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    params, mesh = hf.load(folder, model), sharding.make_mesh(1)
    towns = ["Lima", "Oslo", "Cairo", "Quito", "Rome", "Bern", "Riga", "Doha"]
    people = [Example(str(i), TEXT, f"Where was number {i} born?", f"in {town}") for i, town in enumerate(towns)]
    numbers = dict(people={e.person: i for i, e in enumerate(people)}, rows=4, seed=0)
    sides = [streams.stream("side", processor, side, None, **numbers) for side in (people[:4], people[4:])]
    step, loss = optax.adam(1e-2), objectives.of_params("descent", model)

    @jax.jit
    def learn(params, state, batch):
        grads = jax.grad(lambda p: loss(p, batch)[0])(params)
        updates, state = step.update(grads, state)
        return optax.apply_updates(params, updates), state

    learned, state, batch = params, step.init(params), sides[0].batch(0)
    for _ in range(100):
        learned, state = learn(learned, state, batch)
    ask, found = evaluate.Examiner(model, processor, mesh, rows=4), []
    for side in sides:
        asked = side.examples
        told, before = (ask.told(p, asked, None, None) for p in (learned, params))
        norms = membership.grad_norms(model, learned, side, mesh)
        given = {"texts": [e.answer for e in asked], "reference": before, "gradients": norms}
        known = {name: row.of(told).mean() for name, row in metrics.asked("told").items()}
        found.append((membership.scores(told, **given), known))
    (members, known), (others, unknown) = found
    assert members.keys() == SCORES.keys()
    for name in SCORES:
        assert membership.auc(members[name], others[name]) == membership.tpr(members[name], others[name]) == 1.0, name
    assert known.keys() == {"told_probability", "exact_memorisation", "extraction_strength"}
    assert all(known[name] > 0.9 > unknown[name] and metrics.METRICS[name].up for name in known)
    print(known, unknown)
