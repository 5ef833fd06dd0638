"""Whole models by a kernel are the models: gradients, of rows apart too, words, on eight devices and with any padding."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divisible import FAMILIES, SHAPE, config, padded
from mmu_jax import generate, models, objectives, rowwise, sharding, trees
from mmu_jax.models import attention as attending
from mmu_jax.models.attention import Kernel


def filled(family, model, mesh):
    """A batch of :data:`SHAPE` with numbers in it, two images a row."""
    from experiments import compiled

    made, drawn = {}, np.random.default_rng(0)
    for name, x in compiled.batch(model, SHAPE, mesh).items():
        made[name] = np.asarray(drawn.normal(size=x.shape) if x.dtype == np.float32 else np.ones(x.shape), x.dtype)
    made["tokens"] = drawn.integers(6, 90, made["tokens"].shape).astype(np.int32)
    made["valid"] = np.array(padded(SHAPE.rows, SHAPE.tokens))
    assert (made["valid"][:, 20:].sum(axis=1) > 5).sum() == SHAPE.rows - 1  # text beside the images in all but one
    made["positions"] = np.broadcast_to(np.arange(SHAPE.tokens, dtype=np.int32), made["positions"].shape).copy()
    if "segment" in made:
        made["segment"] = np.broadcast_to(np.arange(SHAPE.patches) // 40, made["segment"].shape).astype(np.int32)
        made["grid"] = np.stack([np.arange(SHAPE.patches) % 40 // 8, np.arange(SHAPE.patches) % 8], -1).astype(np.int32)
        made["grid"] = np.broadcast_to(made["grid"], (SHAPE.rows, SHAPE.patches, 2)).copy()
    made["tokens"][:, :20] = 5  # features of the images
    return made


def differentiated(model, batch, mesh):
    """A function of the params that gives the gradient of a loss and the logits where tokens are valid."""
    own = np.asarray(batch["valid"]).astype(bool)[..., None]

    def loss(params):
        logits = model.forward(params, batch)
        return (jax.nn.log_softmax(logits)[..., 7] * own[..., 0]).sum(), jnp.where(own, logits, 0)

    def made(params):
        with jax.set_mesh(mesh):
            return jax.jit(lambda params: jax.grad(loss, has_aux=True)(params))(params)

    return made


def agree(got, want):
    """Gradients and logits, to 1e-5 of the largest of a leaf."""
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)
    want, got = trees.flatten(want[0]), trees.flatten(got[0])
    for name, a in want.items():
        np.testing.assert_allclose(got[name], a, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_by_a_kernel_is_the_model(family, kernel, monkeypatch):
    model, mesh = models.Model(config(family)), sharding.make_mesh(4, 2)
    batch = filled(family, model, mesh)
    with monkeypatch.context() as other:
        other.setattr(attending, "KERNELS", {})
        params = model.init(0)
        want = differentiated(model, batch, mesh)(params)
    assert not kernel
    agree(differentiated(model, batch, mesh)(params), want)
    assert len(set(kernel)) == 2  # the tower's and the text model's


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_reaches_a_kernel_that_knows_of_no_padding(family, left, monkeypatch):
    model, mesh, taken = models.Model(config(family)), sharding.make_mesh(4, 2), set()
    params, batch = model.init(0), filled(family, model, mesh)
    if left:
        batch["valid"] = batch["valid"][:, ::-1]
    want = differentiated(model, batch, mesh)(params)

    def blunt(q, k, v, mask):
        assert mask.segments() is None and mask.dense is None
        taken.add((q.shape[1], mask.causal))
        return jax.nn.dot_product_attention(q, k, v, is_causal=mask.causal)

    monkeypatch.setattr(attending, "KERNELS", {"cpu": Kernel(blunt, lambda kind, *given: kind in ("all", "causal"))})
    monkeypatch.setattr(attending, "LONG", 1)
    agree(differentiated(model, batch, mesh)(params), want)
    assert taken == {(SHAPE.tokens, True)} | ({(17, False)} if family == "llava" else set())


@pytest.mark.parametrize("way", ["vmap", "rows"])
def test_gradients_of_rows_by_a_kernel(way, kernel):
    """Every row's own, one after the other mapped over, and all in one backward pass."""
    model, mesh = models.Model(config("llava")), sharding.make_mesh(1)
    params, batch = model.init(0), filled("llava", model, mesh)
    batch["weights"] = np.asarray(batch["valid"], np.float32) * (np.arange(SHAPE.tokens) >= 20)
    part, rest = trees.split(params, r"language_model/layers/.*proj/weight")
    losses = objectives.of_rows("descent", model)

    def made():
        with jax.set_mesh(mesh):
            if way == "rows":
                return jax.jit(lambda p: rowwise.sums(losses, p, part, batch, "squared"))(params)

            def squares(p, row):
                def loss(p):
                    return losses.of(trees.merge(p, rest), jax.tree.map(lambda x: x[None], row))[0]

                return jax.tree.map(jnp.square, jax.grad(loss)(p))

            return jax.jit(lambda p: jax.tree.map(lambda x: x.sum(0), jax.vmap(squares, (None, 0))(p, batch)))(part)

    with attending.kernels(False):
        want = trees.flatten(made())
    kernel.clear()
    got = trees.flatten(made())
    assert kernel
    for name, a in want.items():
        if a is not None:
            np.testing.assert_allclose(got[name], a, rtol=1e-4, atol=1e-5 * float(a.max()), err_msg=name)


@pytest.mark.parametrize("left", [False, True])
def test_prompts_by_a_kernel_are_answered_alike(left, kernel):
    model, mesh = models.Model(config("llava")), sharding.make_mesh(4, 2)
    params, batch = jax.tree.map(lambda x: 8 * x, model.init(0)), filled("llava", model, mesh)
    if left:
        batch["valid"] = batch["valid"][:, ::-1].copy()

    def words():
        with jax.set_mesh(mesh):
            return np.asarray(generate.generate(model, params, batch, new_tokens=6, stop=(2,)))

    with attending.kernels(False):
        want = words()
    kernel.clear()
    got = words()  # made anew, since the kernel may be taken now
    assert kernel and len(np.unique(want)) > 4
    np.testing.assert_array_equal(got, want)


def test_a_study_without_kernels_has_none(kernel, monkeypatch):
    from mmu_jax.study.study import Study

    seen = []

    def run(only, opened):
        seen.append(attending.tiled(sharding.make_mesh(1), 8, 40, 2, 16, jnp.float32, "causal"))

    for wanted in (False, True):
        study = object.__new__(Study)
        config = types.SimpleNamespace(
            mesh=types.SimpleNamespace(kernels=wanted), unlearn=types.SimpleNamespace(methods=())
        )
        study.work = types.SimpleNamespace(
            config=config, given={}, tracker=types.SimpleNamespace(open=None, close=lambda: None)
        )
        study.stages = types.SimpleNamespace(wanted=lambda names: names, run=run, done=lambda name: False)
        monkeypatch.setattr("mmu_jax.study.settings.unused", lambda *given: [])
        monkeypatch.setattr("mmu_jax.study.checks.preflight", lambda *given: None)
        study.run()
    assert seen == [False, True]
