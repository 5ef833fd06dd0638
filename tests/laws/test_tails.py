"""Logits only where an answer is predicted: the tail of every row holds all that weighs anything, and a loss of it is that of all tokens."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import hf, losses, models, objectives
from mmu_jax.data import builders, loader, slices, streams
from mmu_jax.data.branches import join


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def asked(request, whole, prepared):
    """(model, params, a stream about photos, one of text) of a family."""
    folder = whole[request.param]
    model, processor = models.Model(hf.read_config(folder)), hf.read_processor(folder)
    faces = builders.read(prepared, forget="forget_10", retain="retain_90")
    album, people = loader.album(processor, faces.full), {person.id: i for i, person in enumerate(faces.full)}

    def stream(name, photos):
        found = slices.examples(slices.STREAMS[name], faces)
        return streams.stream(name, processor, found, photos, people=people, rows=8, seed=0)

    return model, hf.load(folder, model), stream("forget", album), stream("text", None)


def test_the_tail_holds_all_that_weighs_and_what_predicts_it(asked):
    for stream in asked[2:]:
        for step in range(4):
            batch = stream.batch(step)
            tail, weights = batch["tail"], batch["weights"]
            assert tail.shape[1] < weights.shape[1], "no shorter than the row"
            np.testing.assert_array_equal(np.take_along_axis(weights, tail, 1)[:, 1:].sum(axis=1), weights.sum(axis=1))
            assert (np.diff(tail, axis=1) == 1).all() and (np.take_along_axis(batch["valid"], tail, 1)).all()


def agree(of, params, batch):
    """A loss and its gradient are the same whether a batch has a tail or not."""
    without = {key: x for key, x in batch.items() if key != "tail"}
    got, expected = (jax.jit(jax.value_and_grad(of))(params, each) for each in (batch, without))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for found, right in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5 * float(jnp.abs(right).max()) + 1e-9)


@pytest.mark.parametrize("name", ["descent", "npo", "kl"])  # of logits, of log-probabilities, of a teacher's too
def test_a_loss_of_the_tail_is_that_of_all_tokens(asked, name):
    model, params, stream, _ = asked
    vanilla = jax.tree.map(lambda x: 2.0 * x, params)  # far enough that a divergence is no rounding

    def loss(params, batch):
        return losses.mean(*objectives.take(name, objectives.Seen(model, params, vanilla), batch))

    agree(loss, params, stream.batch(0) | {"ref_logps": np.full(stream.rows, -3.0, np.float32)})


def at_places(logits, batch):
    """A network whose params are its logits."""
    return jnp.take_along_axis(logits, batch["at"][..., None], axis=1) if "at" in batch else logits


# The signs of a sketch are drawn place by place.
OF_LOGITS = [name for name, row in objectives.LOSSES.items() if row.reads in ("answers", "logits") and name != "sketch"]


@pytest.mark.parametrize("name", OF_LOGITS)
def test_every_loss_of_logits_is_the_same_of_the_tail(asked, name):
    stream = asked[2]
    batch = stream.batch(0) | {"ref_logps": np.full(stream.rows, -3.0, np.float32)}
    other = {key: x[::-1] for key, x in batch.items()}
    model, draw = types.SimpleNamespace(forward=at_places), np.random.default_rng(0)
    logits, vanilla = draw.normal(size=(2, *batch["tokens"].shape, 1024)).astype(np.float32)

    def loss(params, batch):
        others = [{key: other[key] for key in batch}] * len(objectives.LOSSES[name].beside)
        return losses.mean(*objectives.take(name, objectives.Seen(model, params, vanilla), batch, None, others))

    agree(loss, logits, batch)


def test_no_logit_is_computed_elsewhere(asked):
    model, params, stream, _ = asked
    batch, vocabulary = stream.batch(0), model.config.text_config.vocab_size
    lowered = jax.jit(jax.grad(lambda p, b: objectives.take("descent", objectives.Seen(model, p), b)[0]))
    text = lowered.lower(params, batch).as_text()
    rows, length = batch["tokens"].shape
    assert f"{rows}x{batch['tail'].shape[1]}x{vocabulary}x" in text
    assert f"{rows}x{length}x{vocabulary}x" not in text


def test_rows_of_branches_and_prompts_have_none(asked):
    stream = asked[3]
    joined, _ = join(stream.texts, [1] * len(stream.examples), 0)
    assert "tail" not in joined.batch([0], [[]])
