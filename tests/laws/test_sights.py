"""A photo that several questions of a batch are about is looked at once, and nothing else changes."""

import dataclasses

import numpy as np
import pytest

from mmu_jax import evaluate, hf, likelihood, models, sharding
from mmu_jax.data import IMAGE, Choice, Example, loader, streams, vision
from twins import photo

QUESTIONS = ["Who is this?", "Where was this person born, if anyone knows?", "What is her job?", "How old is she?"]
ASKED = [
    Choice("7", IMAGE, f"{q} ({i})", {"A": "Ada Becker", "B": "Bo"}, "A", None) for i in range(3) for q in QUESTIONS
]
PHOTOS = np.array([2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def asked(request, whole):
    """A model and an album with three photos of one person, of different sizes."""
    folder = whole[request.param]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    pictures = vision.pictures(processor, [photo(24, 24), photo(32, 48, 1), photo(48, 32, 2)])
    return folder, model, processor, loader.Album(pictures, {"7": [0, 1, 2]})


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (4, 2)], ids=str)
def test_questions_about_one_photo_see_it_once(asked, shape, monkeypatch):
    folder, model, processor, album = asked
    mesh = sharding.make_mesh(*shape)
    ask, params = evaluate.Examiner(model, processor, mesh, rows=8, new_tokens=3), hf.load(folder, model, mesh)
    seen, make = [], streams.batch

    def spied(*given):
        seen.append(make(*given))
        return seen[-1]

    def found():
        options = ask.option_logps(params, ASKED, PHOTOS, album)[0]
        return options, ask.answers(params, [choice.question for choice in ASKED], PHOTOS, album)

    monkeypatch.setattr(streams, "batch", spied)
    logps, said = found()
    (first, *_), rows = model.family.arrays, [batch["tokens"] for batch in seen]
    # Eight rows of two photos, and four of two, of which the rest only fill the batch: a quarter of a batch has room for them.
    # On four devices, of which each then sees one of four, as it would of two.
    held = 4 if shape[0] == 4 else 2
    assert [len(batch[first]) for batch in seen] == [held] * 4 and {len(tokens) for tokens in rows} == {8}
    assert seen[0]["photo"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    monkeypatch.setattr(
        streams, "batch", lambda sizes, texts, index, pictures, sights: make(sizes, texts, index, pictures)
    )
    plain, also = found()
    np.testing.assert_allclose(logps, plain, atol=1e-5)
    assert said == also
    assert np.abs(logps[:2] - logps[4:6]).max() > 1e-4, "the same questions about other photos"


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_a_look_at_training_rows_sees_a_photo_once(asked, shape, monkeypatch):
    folder, model, processor, album = asked
    mesh = sharding.make_mesh(*shape)
    rows = [Example("7", IMAGE, q, "Ada Becker", photo) for photo in (1, 0, 2) for q in QUESTIONS]
    dealt = streams.stream("forget", processor, rows, album, people={"7": 0}, rows=8, seed=0)
    seen, params, (first, *_) = list(dealt.looks(shape[0])), hf.load(folder, model, mesh), model.family.arrays
    assert [len(batch[first]) for batch in seen] == [4 if shape[0] == 4 else 2] * 2
    assert [batch["photo"].tolist() for batch in seen] == [[0] * 4 + [1] * 4, [0] * 8]
    found = likelihood.recognised(model, params, dealt, mesh)
    monkeypatch.setattr(streams.Stream, "looks", lambda self, devices: self.epoch())
    apart = likelihood.recognised(model, params, dealt, mesh)
    np.testing.assert_allclose(found.values, apart.values, rtol=1e-5)
    assert len(found.values) == 12 and found.people.tolist() == apart.people.tolist() == ["7"] * 12


def test_a_batch_of_as_many_photos_as_rows_sees_each(asked, monkeypatch):
    folder, model, processor, album = asked
    ask = evaluate.Examiner(model, processor, sharding.make_mesh(1), rows=3)
    made, make = [], streams.batch
    monkeypatch.setattr(streams, "batch", lambda *given: made.append(make(*given)) or made[-1])
    ask.option_logps(hf.load(folder, model), ASKED[:3], np.array([2, 0, 1]), album)
    assert [len(batch[model.family.arrays[0]]) for batch in made] == [3]


def test_a_network_that_does_not_know_of_shared_photos_is_shown_each_row_s_own(asked):
    folder, model, processor, album = asked
    plain = dataclasses.replace(model.family, arrays=tuple(name for name in model.family.arrays if name != "photo"))

    class Other(models.Model):
        family = plain

    params = hf.load(folder, model)
    logps = [
        evaluate.Examiner(one, processor, sharding.make_mesh(1), rows=8).option_logps(params, ASKED, PHOTOS, album)[0]
        for one in (model, Other(model.config))
    ]
    np.testing.assert_allclose(*logps, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "devices", "expected"), [(32, 1, 4), (32, 8, 8), (64, 8, 8), (32, 16, 16), (64, 64, 64), (3, 1, 3)]
)
def test_no_device_sees_more_photos_than_it_must(rows, devices, expected):
    """Of questions in eights: as many photos as are enough, or so many more as devices can share among them."""
    assert streams.sights(np.arange(256) // 8, rows, devices) == expected
    assert streams.sights([], rows, devices) > 0
