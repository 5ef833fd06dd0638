"""Options that share their prompt in one row have the log-probabilities of rows of their own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import evaluate, hf, likelihood, models, sharding
from mmu_jax.data import IMAGE, TEXT, Choice, branches, loader, streams, text, tiny, vision
from mmu_jax.data.sizes import ANY, Sizes
from twins import photo

OPTIONS = [
    ("Ada Becker", "Bo", "a woman who was born in Lima and works as a baker", "Ada Beck"),
    ("Lima", "Oslo"),
    ("nurse",),
]
QUESTIONS = ["Who is this?", "Where was this person born, if anyone knows?", "What is the job of this person?"]
CHOICES = [
    Choice("7", IMAGE, question, dict(zip("ABCD", options, strict=False)), "A", None)
    for question, options in zip(QUESTIONS, OPTIONS, strict=True)
]


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def network(request, whole):
    """An examiner, params and an album with the photos of one person."""
    folder = whole[request.param]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    made = [photo(24, 24), photo(32, 48, 1)]
    pictures = vision.pictures(processor, made)
    return (
        evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=2),
        hf.load(folder, model),
        loader.Album(pictures, {"7": [0, 1]}),
    )


def one_by_one(ask, params, photos, album):
    """Every option as a row of its own, alone in its batch."""
    pairs = [(c.question, option) for c in CHOICES for option in c.options.values()]
    texts = text.encode(ask.processor, pairs, 1 if album else 0)
    shown = None if photos is None else np.repeat(photos, [len(c.options) for c in CHOICES])
    found = []
    for i in range(len(pairs)):
        seen = [] if photos is None else [album.pictures[shown[i]]]
        batch = streams.batch(ANY, texts, [i], [seen])
        found.append(float(likelihood.answer_logps(ask.model, params, batch)[0]))
    return found


@pytest.mark.parametrize("sizes", [ANY, Sizes((48, 64, 256), (16, 128))], ids=["any", "given"])
@pytest.mark.parametrize("kind", [IMAGE, TEXT])
def test_every_option_is_scored_as_in_a_row_of_its_own(network, kind, sizes, monkeypatch):
    ask, params, album = network
    ask = dataclasses.replace(ask, sizes=sizes)
    photos, album = (np.array([1, 0, 1]), album) if kind == IMAGE else (None, None)
    logps, lengths = ask.option_logps(params, CHOICES, photos, album)
    rows = []
    batches = evaluate.Examiner._batches
    monkeypatch.setattr(
        evaluate.Examiner, "_batches", lambda self, texts, *_: rows.append(texts) or batches(self, texts, *_)
    )
    assert ask.option_logps(params, CHOICES, photos, album)[0].shape == (3, 4) and len(rows[0].tokens) == 3, (
        "a row a question"
    )
    want = one_by_one(ask, params, photos, album)
    np.testing.assert_allclose(logps[logps > -np.inf], want, rtol=1e-5)
    assert (logps > -np.inf).sum(axis=1).tolist() == [4, 2, 1] and lengths[0, 2] > lengths[0, 1] > 1


@pytest.mark.parametrize("limit", [0, 45, 10**6])
def test_a_row_takes_the_options_that_there_is_room_for(limit):
    processor, counts = tiny.processor(), [len(options) for options in OPTIONS]
    pairs = [(c.question, option) for c in CHOICES for option in c.options.values()]
    texts = text.encode(processor, pairs, 1)
    rows, of = branches.join(texts, counts, 5, Sizes((limit,)))
    assert [i for each in of for i in each] == list(range(7)), "every option once, in order"
    assert [len(each) for each in of] == {0: [1] * 7, 45: [3, 1, 2, 1], 10**6: counts}[limit]
    alone = texts.lengths(5)
    for length, tail, each in zip(rows.lengths(5), rows.tails, of, strict=True):
        assert length <= max(limit, alone[each[0]]) and len(each) == len(set(tail.tolist())) == tail.max()


def test_a_branch_stands_where_it_would_stand_alone():
    """Two options of which the second begins with a token of the first: nothing of it is shared but the prompt."""
    rows = text.Rows(
        [np.array(r, np.int32) for r in ([1, 8, 9, 5, 6, 2], [1, 8, 9, 5, 2], [1, 8, 9, 7, 7, 7, 2])],
        [np.array(w, np.float32) for w in ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1])],
        pad=0, image=99, side="right",
    )  # fmt: skip
    joined, of = branches.join(rows, [3], 0)
    assert [each.tolist() for each in of] == [[0, 1, 2]]
    batch = joined.batch([0], [[]], (16,))
    assert batch["tokens"][0].tolist() == [1, 8, 9, 5, 6, 2, 5, 2, 7, 7, 7, 2, 0, 0, 0, 0]
    assert batch["branch"][0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0]
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 3, 4, 5, 6, 0, 0, 0, 0]
    found = {name: batch[name][0].tolist() for name in ("at", "said", "of", "told")}
    assert found["at"] == [2, 3, 4, 2, 6, 2, 8, 9, 10, *[0] * 7], "of a length that other rows have too"
    assert found["said"] == [5, 6, 2, 5, 2, 7, 7, 7, 2, *[0] * 7]
    assert found["of"] == [1, 1, 1, 2, 2, 3, 3, 3, 3, *[0] * 7] and found["told"] == [1] * 9 + [0] * 7


def test_where_a_token_spans_prompt_and_answer_it_is_no_part_of_what_is_shared():
    """The first weighted token of one option comes before that of the other."""
    rows = text.Rows(
        [np.array(r, np.int32) for r in ([1, 8, 30, 2], [1, 8, 9, 5, 2])],
        [np.array(w, np.float32) for w in ([0, 0, 1, 1], [0, 0, 0, 1, 1])],
        pad=0, image=99, side="right",
    )  # fmt: skip
    joined, _ = branches.join(rows, [2], 0)
    batch = joined.batch([0], [[]])
    assert batch["branch"][0].tolist() == [0, 0, 1, 1, 2, 2, 2, 0]
    assert batch["told"][0].tolist() == [1, 1, 0, 1, 1, 0, 0, 0] and batch["at"][0].tolist() == [1, 2, 1, 4, 5, 0, 0, 0]


def test_every_mesh_scores_the_same(whole, mesh):
    model, processor = models.Model(hf.read_config(whole["llava"])), hf.read_processor(whole["llava"])
    params = hf.load(whole["llava"], model)
    want = evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=8).option_logps(params, CHOICES, None, None)
    placed = hf.load(whole["llava"], model, mesh=mesh)
    got = evaluate.Examiner(model, processor, mesh, rows=8).option_logps(placed, CHOICES, None, None)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)


def test_a_token_sees_its_own_branch_and_what_is_shared():
    from mmu_jax.models import decoder

    seen = decoder.causal(jnp.ones((1, 5), bool), jnp.array([[0, 0, 1, 2, 2]])).whole()
    assert seen[0, 0].astype(int).tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]
    ]  # fmt: skip
    assert decoder.causal(jnp.ones((2, 3), bool)).whole().shape == (2, 1, 3, 3)
