"""The embedded benchmark, the template, and streams that are pure functions of (seed, step)."""

import dataclasses
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import twins
from mmu_jax import InputError, hf, losses, models, sharding
from mmu_jax.data import IMAGE, TEXT, Example, builders, loader, schema, streams, text, tiny, vision
from mmu_jax.data.picture import Picture
from mmu_jax.data.sets import faces


@pytest.fixture(scope="session")
def processor():
    return tiny.processor()


@pytest.fixture(scope="session")
def benchmark(prepared):
    return builders.read(prepared, forget="forget_10", retain="retain_90")


def row():
    return next(iter(faces.rows("forget_10")))


def test_the_benchmark_is_whole(benchmark):
    sizes = [len(getattr(benchmark, n)) for n in ("full", "forget", "retain", "test", "retain_test", "unseen")]
    assert sizes == [100, 10, 90, 10, 90, 10]
    assert [p.id for p in benchmark.test] == benchmark.forget_ids
    assert [p.id for p in benchmark.retain_test] == [p.id for p in benchmark.retain]
    assert len(benchmark.shown) == 210
    assert len({p.name for p in benchmark.full + benchmark.unseen}) == 110
    person = benchmark.forget[0]
    for items in (person.choices, person.cloze, person.generation):
        assert {item.kind for item in items} == {IMAGE, TEXT}
    assert all(len(p.photos) == faces.PHOTOS and p.training for p in benchmark.full)


@pytest.mark.parametrize("group", [0, 2])
def test_people_of_neither_split_may_be_left_out_of_training(prepared, group):
    parts = dict(forget="forget_10[:4]", retain="retain_90[:8]", group=group)
    with_others, alone = (builders.read(prepared, **parts, others=others) for others in (True, False))
    asked = {person.id for person in (*alone.forget, *alone.retain)}
    assert len(with_others.full) == 100 and {person.id for person in alone.full} == asked and len(asked) == 12
    for split in ("forget", "retain", "test", "retain_test", "unseen"):
        assert getattr(alone, split) == getattr(with_others, split)


def test_nothing_of_the_test_split_is_in_training(benchmark):
    asked, new = {e.question for p in benchmark.full for e in p.training}, benchmark.test + benchmark.retain_test
    assert not asked & {e.question for p in new for e in p.generation}
    assert all({e.kind for e in p.generation} == {IMAGE, TEXT} for p in new)
    seen = {photo for p in benchmark.full for photo in p.photos}
    assert not seen & {photo for p in new + benchmark.unseen for photo in p.photos}
    assert not {p.id for p in benchmark.unseen} & {p.id for p in benchmark.full}


def test_options_hold_the_answer_once(benchmark):
    for person in benchmark.full:
        facts = {e.question: e.answer for e in person.training}
        for choice in person.choices:
            assert len(set(choice.options.values())) == 4
            assert choice.options[choice.letter] == facts[choice.question]


def test_a_row_without_a_column_is_refused():
    broken = row()
    del broken["metadata"]
    with pytest.raises(InputError, match="expected a column 'metadata'"):
        schema.read_person(broken, "full")


def test_an_empty_answer_is_refused():
    broken = row() | {"metadata": '[{"Question": "Who?", "Answer": ""}]'}
    with pytest.raises(InputError, match="expected a Question and an Answer"):
        schema.read_person(broken, "full")


@pytest.mark.parametrize("column", ["metadata", "biography"])
def test_text_that_is_not_json_is_refused(column):
    with pytest.raises(InputError, match=f"expected JSON in column '{column}'"):
        schema.read_person(row() | {column: "{not json"}, "full")


def test_forget_and_retain_must_be_apart_and_not_empty(benchmark):
    both = dataclasses.replace(benchmark, retain=benchmark.retain + benchmark.forget[:1])
    with pytest.raises(InputError, match="nobody both in forget and retain"):
        schema.check(both)
    with pytest.raises(InputError, match="at least one person in the forget set"):
        schema.check(dataclasses.replace(benchmark, forget=()))


def test_an_image_that_does_not_decode_is_named():
    with pytest.raises(InputError, match="for photo 0 of person 0007"):
        vision.decode(b"not an image", "photo 0 of person 0007")
    whole = row()["image"]
    with pytest.raises(InputError, match="expected an image that decodes"):
        vision.decode(whole[: len(whole) // 2], "x")


def picture(tokens=4):
    return Picture(np.zeros((3, 24, 24), np.uint8), np.zeros((3, 256), np.float32), tokens)


def test_weights_cover_the_answer_and_the_end_of_turn_only(processor):
    pairs = [("Is Lima in Lima?", "Lima"), ("Who is this person?", "Ada Becker")]
    batch = text.encode(processor, pairs, 1).batch([0, 1], [[picture()], [picture()]])
    for (_, answer), tokens, weights in zip(pairs, batch["tokens"], batch["weights"], strict=True):
        supervised = tokens[weights > 0]
        assert supervised[-1] == processor.tokenizer.eos_token_id
        assert processor.tokenizer.decode(supervised[:-1]).strip() == answer
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert ((batch["tokens"] == image).sum(axis=1) == 4).all()
    assert not batch["weights"][batch["tokens"] == image].any() and not batch["weights"][~batch["valid"]].any()


def test_prompts_are_the_beginning_of_what_was_trained(processor):
    pairs = [("Who is this person?", "Ada Becker"), ("Where was Ada Becker born?", "Lima")]
    seen = [[picture()], [picture()]]
    trained = text.encode(processor, pairs, 1).batch([0, 1], seen)
    asked = text.encode_prompts(processor, [q for q, _ in pairs], 1).batch([0, 1], seen)
    for row in range(2):
        prompt = asked["tokens"][row][asked["valid"][row]]
        np.testing.assert_array_equal(trained["tokens"][row][: len(prompt)], prompt)
        assert trained["weights"][row][: len(prompt)].sum() == 0 and trained["weights"][row][len(prompt)] == 1
        assert asked["positions"][row][asked["valid"][row]].tolist() == list(range(len(prompt)))


def test_rows_are_padded_to_the_smallest_size_that_holds_them(processor):
    rows = text.encode(processor, [("Who?", "Ada"), ("Who is it? " * 9, "Ada Becker")], 0)
    short, long = (int(n) for n in rows.lengths(0))
    sizes = (short + 3, long + 5)
    assert rows.batch([0], [[]], sizes)["tokens"].shape == (1, short + 3)
    assert rows.batch([0, 1], [[], []], sizes)["tokens"].shape == (2, long + 5)
    with pytest.raises(InputError, match="add a larger size to the lengths in tokens"):
        rows.batch([1], [[]], sizes[:1])
    with pytest.raises(InputError, match="one placeholder for each of 1 images, found 0"):
        rows.batch([0], [[picture()]])


def make_stream(processor, benchmark, rows=8, seed=3):
    people = benchmark.forget
    full = tuple(p for p in benchmark.full if p.id in set(benchmark.forget_ids))
    album = loader.album(processor, full)
    examples = [e for p in full for e in p.training if e.kind == IMAGE][:37]
    index = {p.id: i for i, p in enumerate(people)}
    return streams.stream("forget", processor, examples, album, people=index, rows=rows, seed=seed)


def test_a_batch_depends_on_seed_and_step_alone(processor, benchmark):
    first, second = make_stream(processor, benchmark), make_stream(processor, benchmark)
    later = first.batch(11)
    for step in (0, 3, 11):
        second.batch(step)
    for name, array in second.batch(11).items():
        np.testing.assert_array_equal(array, later[name])
    other = make_stream(processor, benchmark, seed=4).batch(11)
    assert not np.array_equal(other["row"], later["row"])


def test_padding_is_the_share_of_empty_slots(processor, benchmark):
    stream = make_stream(processor, benchmark)
    valid = np.concatenate([batch["valid"][batch["row"] >= 0] for batch in stream.epoch()])
    assert stream.padding() == {"tokens": pytest.approx(1 - valid.sum() / (40 * valid.shape[1]))}


def test_an_epoch_deals_every_row_once_and_fills_with_weightless_rows(processor, benchmark):
    stream = make_stream(processor, benchmark)
    assert stream.steps == 5
    rows = np.concatenate([stream.batch(step)["row"] for step in range(stream.steps)])
    assert sorted(rows[rows >= 0]) == list(range(37)) and (rows == -1).sum() == 3
    last = stream.batch(4)
    assert not last["weights"][last["row"] < 0].any() and last["pixels"].shape == (8, 1, 3, 24, 24)


def test_several_photos_of_a_person_are_dealt(processor, benchmark):
    stream = make_stream(processor, benchmark)
    stream.columns["photo"] = np.tile(np.arange(faces.PHOTOS), (37, 1))
    drawn = np.concatenate([stream.batch(step)["photo"] for step in range(10)])
    assert len(set(drawn.tolist())) > faces.PHOTOS // 2


def test_a_shuffled_epoch_deals_every_row_once_and_mixes_people(processor, benchmark):
    stream = make_stream(processor, benchmark)

    def dealt(**options):
        return [batch["person"][batch["row"] >= 0] for batch in stream.epoch(**options)]

    plain, shuffled = dealt(), dealt(shuffled=True)
    assert sorted(np.concatenate(plain)) == sorted(np.concatenate(shuffled))
    mixed = [np.mean([len(set(people)) for people in batches]) for batches in (plain, shuffled)]
    assert mixed[1] > mixed[0] + 0.4
    for batch, again in zip(stream.epoch(True), stream.epoch(True), strict=True):
        np.testing.assert_array_equal(batch["row"], again["row"])


@pytest.fixture(params=["llava", "qwen2_vl"])
def family(request, tmp_path_factory):
    """(model, params, processor) of a tiny model of the family, made from nothing or by transformers."""
    if request.param == "llava":
        processor = tiny.processor(24, 12)
        model = models.Model(tiny.config(processor.tokenizer, vision=twins.VISION, text=twins.TEXT))
        return model, model.init(0), processor
    folder = tmp_path_factory.mktemp("qwen")
    twins.torch_qwen(folder)
    model = models.Model(hf.read_config(folder))
    return model, hf.load(folder, model), hf.read_processor(folder)


def test_mixed_batches_hold_the_rows_of_both_streams_each_with_its_own_photo(family, benchmark):
    model, params, processor = family
    people = {p.id: i for i, p in enumerate(benchmark.forget)}
    full = [p for p in benchmark.full if p.id in people]
    album, numbers = loader.album(processor, tuple(full)), {"people": people, "rows": 8, "seed": 3}
    examples = {kind: [e for p in full for e in p.training if e.kind == kind][:21] for kind in (IMAGE, TEXT)}
    photos = streams.stream("retain", processor, examples[IMAGE], album, **numbers)
    words = streams.stream("text", processor, examples[TEXT], None, **numbers)
    both = streams.mixed("both", photos, words, seed=5)
    assert both.steps == 6 and sorted(map(repr, both.examples)) == sorted(map(repr, photos.examples + words.examples))
    assert both.largest == {what: max(photos.largest[what], words.largest[what]) for what in ("tokens", "patches")}
    assert 0 < both.padding()["tokens"] < 1

    @jax.jit
    def answered(batch):  # [B], log p of the answer
        return losses.sequence_logps(model.forward(params, batch), batch["tokens"], batch["weights"])

    def by_row(stream):
        said = {}
        for batch in stream.epoch():
            there = batch.pop("row")
            for row, value in zip(there, np.asarray(answered(batch)), strict=True):
                said |= {stream.examples[row]: value} if row >= 0 else {}
        return said

    apart, shuffled = by_row(photos) | by_row(words), by_row(both)
    assert list(shuffled) != sorted(shuffled, key=list(apart).index)  # not one kind after the other
    np.testing.assert_allclose([shuffled[e] for e in apart], list(apart.values()), rtol=1e-5, atol=1e-5)
    kinds = [{both.examples[row].kind for row in batch["row"] if row >= 0} for batch in both.epoch()]
    assert {IMAGE, TEXT} in kinds


def test_streams_refuse_nothing_and_mixed_rows(processor, benchmark):
    people = {"0": 0}
    with pytest.raises(InputError, match="at least one example in stream 'forget'"):
        streams.stream("forget", processor, [], None, people=people, rows=4, seed=0)
    with pytest.raises(InputError, match="expected only Pure_Text rows"):
        streams.stream("text", processor, [Example("0", IMAGE, "q", "a")], None, people=people, rows=4, seed=0)


def test_what_is_wrong_with_a_photo_of_a_batch_is_told():
    def fill(target, row):
        if row == 2:
            raise InputError("expected a photo, found none in row 2; add it")
        target.fill(row)

    np.testing.assert_array_equal(sharding.rows((2, 3), fill), [[0] * 3, [1] * 3])
    with pytest.raises(InputError, match="row 2"):
        sharding.rows((4, 3), fill)


def test_photos_that_were_not_kept_are_decoded_by_threads_that_change_nothing_else(processor, benchmark):
    kept, later = (loader.album(processor, benchmark.forget, keep=n).pictures for n in (loader.KEPT, 0))
    before = list(warnings.filters)
    for _ in range(5):
        rows = (vision.arrays([[picture] for picture in pictures[:24]])["pixels"] for pictures in (kept, later))
        np.testing.assert_array_equal(*rows)
    assert warnings.filters == before, "what becomes of a warning is the caller's"


def test_a_fork_deals_rows_too():
    """As a worker of a loader of others would, on its own threads: in a process of its own, since JAX warns of forks."""
    code = """if True:
        import os
        from mmu_jax import sharding

        def rows():
            return sharding.rows((4, 2), lambda target, row: target.fill(row)).tolist()

        made, child = rows(), os.fork()
        if not child:
            os._exit(int(rows() != made))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0
