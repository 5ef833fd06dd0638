"""Attention by a kernel is plain attention, alone and in whole models, and is taken where a platform has it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divisible import padded
from mmu_jax import memory, models, sharding
from mmu_jax.models import attention as attending
from mmu_jax.models import decoder, qwen2_vl
from mmu_jax.models.attention import AttentionMask, attention, plain, splash

EXACT = {"rtol": 1e-5, "atol": 1e-5}
interpreted = functools.partial(splash, interpret=True)


def numbers(rows, tokens, heads, groups, head, seed=0, dtype=np.float32):
    """Queries, keys and values, and what the output is weighed by."""
    made = np.random.default_rng(seed)
    return [
        jnp.asarray(made.normal(size=(rows, tokens, n, head)).astype(np.float32), dtype)
        for n in (heads, groups, groups, heads)
    ]


MASKS = {
    "all": lambda b, t: AttentionMask(),
    "no later": lambda b, t: AttentionMask(causal=True),
    "text": lambda b, t: AttentionMask(valid=padded(b, t)),
    "left": lambda b, t: AttentionMask(valid=padded(b, t, left=True)),
    "images": lambda b, t: AttentionMask(segment=jnp.asarray(np.arange(t) // 50 * np.ones((b, 1), int)) - 1),
}


def by(way, q, k, v, weigh, mask):
    """Output of ``way`` and the gradients of its weighted sum, where a query is no padding."""
    own = True if mask.valid is None else mask.valid[..., None, None]

    def total(q, k, v):
        out = jnp.where(own, way(q, k, v, mask), 0)
        return (out * weigh).sum(), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("tokens", "heads", "groups", "head"), [(128, 2, 2, 128), (145, 4, 2, 16), (300, 2, 1, 80)])
def test_splash_attention_is_plain_attention(mask, tokens, heads, groups, head):
    *given, weigh = numbers(2, tokens, heads, groups, head)
    seen = MASKS[mask](2, tokens)
    want, got = by(plain, *given, weigh, seen), by(interpreted, *given, weigh, seen)
    for name, a, b in zip(("out", "q", "k", "v"), want, got, strict=True):
        np.testing.assert_allclose(b, a, **EXACT, err_msg=name)


def test_a_score_by_hand():
    q = k = jnp.zeros((1, 3, 1, 8))
    v = jnp.arange(3.0)[None, :, None, None] * jnp.ones(8)
    for way in (plain, interpreted):
        out = way(q, k, v, AttentionMask(valid=jnp.array([[1, 1, 0]])))
        np.testing.assert_allclose(out[0, :2, 0, 0], [0.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 1)])
def test_devices_share_rows_and_heads_of_a_kernel(kernel, shape):
    *given, weigh = numbers(4 if shape == (4, 2) else 8, 40, 4, 2, 16)
    seen = MASKS["text"](len(weigh), 40)
    want = by(plain, *given, weigh, seen)
    with jax.set_mesh(sharding.make_mesh(*shape)):
        got = by(attention, *given, weigh, seen)
    assert set(kernel) == {(len(weigh) // shape[0], 40, 4 // shape[1], 16)}  # a device's own
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, **EXACT)


def test_where_no_mesh_says_who_has_what_attention_is_plain(kernel):
    """Inputs may lie on several devices, and the compiler cannot take a kernel apart."""
    *given, weigh = numbers(8, 40, 2, 1, 16)
    seen = MASKS["text"](8, 40)
    want = plain(*given, seen)
    np.testing.assert_allclose(attention(*given, seen), want, rtol=1e-5, atol=1e-6)
    others = jax.make_mesh((4, 2), ("rows", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    copies = jax.make_mesh((2, 1, 4), ("data", "model", "copy"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    for mesh in (others, copies):
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(attention(*given, seen), want, rtol=1e-5, atol=1e-6)
    assert not kernel


def test_what_a_mesh_does_not_divide_and_a_dense_mask_are_plain(kernel):
    *given, weigh = numbers(3, 40, 2, 1, 16)
    seen = MASKS["text"](3, 40)
    want = plain(*given, seen)
    for shape in ((8, 1), (1, 2)):
        with jax.set_mesh(sharding.make_mesh(*shape)):
            np.testing.assert_allclose(attention(*given, seen), want, rtol=1e-5, atol=1e-6)
    dense = AttentionMask(dense=seen.whole())
    np.testing.assert_allclose(attention(*given, dense), want, rtol=1e-5, atol=1e-6)
    with jax.set_mesh(sharding.make_mesh(1)):
        with attending.kernels(False):
            np.testing.assert_allclose(attention(*given, seen), want, rtol=1e-5, atol=1e-6)
        assert not kernel
        attention(*given, seen)
    assert kernel


def test_windows_are_those_of_equal_image_row_and_column():
    vision = type("Vision", (), {"window_size": 16, "spatial_merge_size": 2, "patch_size": 2})
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(14), indexing="ij"), -1).reshape(1, -1, 2)
    grid = np.concatenate([grid, grid[:, :60], np.zeros((1, 4, 2), int)], axis=1)
    segment = np.repeat([0, 1, -1], [126, 60, 4])[None]
    got = np.asarray(qwen2_vl._windows(vision, jnp.asarray(grid), jnp.asarray(segment)))[0]
    keys = [(s, y // 8, x // 8) for s, (y, x) in zip(segment[0], grid[0], strict=True)]
    assert [[a == b for b in got] for a in got] == [[a == b for b in keys] for a in keys]


def machine(name):
    """A device by its platform, or, ``"tpu v3"``, of that kind."""
    return types.SimpleNamespace(platform=name[:3], device_kind=f"TPU{name[3:]}")


def test_where_there_is_a_kernel(monkeypatch):
    mesh, one, none = sharding.make_mesh(4, 2), sharding.make_mesh(1), jax.sharding.get_abstract_mesh()
    assert {sharding.device(where).platform for where in (None, mesh, none)} == {"cpu"}
    assert not attending.tiled(mesh, 4, 4096, 2, 128, jnp.bfloat16, "causal")
    for platform, where, *given, want in [
        ("tpu", mesh, 4, 577, 2, 64, jnp.float32, "all", True),
        ("tpu v3", mesh, 4, 577, 2, 64, jnp.float32, "all", False),
        ("tpu", one, 3, 256, 3, 80, jnp.bfloat16, "segments", True),
        ("tpu", one, 3, 256, 3, 80, jnp.bfloat16, "dense", False),
        ("tpu", one, 3, 255, 3, 80, jnp.bfloat16, "causal", False),
        ("tpu", none, 3, 256, 3, 80, jnp.bfloat16, "segments", False),  # of eight devices
        ("tpu", mesh, 3, 577, 2, 64, jnp.float32, "all", False),  # rows that four devices cannot share
        ("tpu", mesh, 4, 577, 3, 64, jnp.float32, "all", False),  # heads that two cannot
        ("gpu", mesh, 4, 577, 2, 64, jnp.bfloat16, "causal", False),  # there is none here
    ]:
        monkeypatch.setattr(sharding, "device", lambda mesh, name=platform: machine(name))
        assert attending.tiled(where, *given) is want, (platform, given)


def test_what_cudnn_takes(nvidia):
    takes = attending.cudnn_takes
    assert takes("causal", 577, 128, jnp.bfloat16, "H100") and takes("all", 576, 64, jnp.float16, "H100")
    for given in (
        ("segments", 576, 64),
        ("dense", 576, 64),
        ("all", 577, 64),
        ("causal", 576, 256),
        ("causal", 576, 84),
    ):
        assert not takes(*given, jnp.bfloat16, "H100"), given
    assert not takes("causal", 576, 128, jnp.float32, "H100")


@pytest.fixture
def nvidia(monkeypatch):
    """As if an H100 were here: what JAX asks of it before it lowers cuDNN's attention, and what is asked here."""
    from jax._src.cudnn import fused_attention_stablehlo as inside

    monkeypatch.setattr(inside, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(inside, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(inside, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(sharding, "device", lambda mesh=None: machine("gpu"))
    gpu = type("Device", (), {"compute_capability": "9.0"})
    monkeypatch.setattr(jax, "local_devices", lambda *given, **more: [gpu()])
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def lowered(given, weigh, mask, platform):
    def total(q, k, v):
        return (attention(q, k, v, mask).astype(jnp.float32) * weigh).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*given).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("mask", "tokens"), [("all", 512), ("no later", 512), ("no later", 577)])
def test_an_nvidia_gpu_gets_cudnn_and_other_platforms_plain(nvidia, mask, tokens):
    *given, weigh = numbers(2, tokens, 4, 2, 64, dtype=jnp.bfloat16)
    seen = MASKS[mask](2, tokens)
    text = lowered(given, weigh, seen, "cuda")
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text and "dot_general" not in text
    assert ("CAUSAL" in text) == seen.causal
    assert "__cudnn" not in lowered(given, weigh, seen, "cpu")
    *floats, _ = numbers(2, tokens, 4, 2, 64)
    assert "__cudnn" not in lowered(floats, weigh, seen, "cuda")
    for other in ("text", "images"):
        assert "__cudnn" not in lowered(given, weigh, MASKS[other](2, tokens), "cuda")


def test_a_model_and_rows_that_are_mapped_over_reach_cudnn(nvidia):
    import transformers

    c = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=8,
    )
    network = decoder.Decoder(c, jnp.bfloat16)
    x, positions, valid = jnp.zeros((3, 300, 128)), jnp.tile(jnp.arange(300), (3, 1)), padded(3, 300)
    params = jax.eval_shape(network.init, jax.random.key(0), x, positions, AttentionMask(valid=valid))

    def total(params, x, positions, valid):
        return network.apply(params, x, positions, AttentionMask(valid=valid))[0].astype(jnp.float32).sum()

    def one(params, x, positions, valid):
        return total(params, x[None], positions[None], valid[None])

    for gradient in (jax.grad(total), jax.vmap(jax.grad(one), (None, 0, 0, 0))):
        made = jax.jit(gradient).trace(params, x, positions, valid).lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmax(" in made and "__cudnn$fmhaSoftmaxBackward(" in made


def test_the_plan_counts_scores_where_they_are_made(monkeypatch):
    from mmu_jax.models.published import PUBLISHED

    model = models.Model(PUBLISHED["llava-1.5-7b"][0](), jnp.bfloat16)
    ledger = memory.Ledger(model, sharding.make_mesh(8), np.float32)
    shape = memory.Shape(rows=8, tokens=768, images=1, answers=64)
    here = ledger.activations(shape)
    monkeypatch.setattr(sharding, "device", lambda mesh=None: machine("tpu"))
    assert here - ledger.activations(shape) > 32 * 768 * 768 * 4  # a set of scores at least
    assert ledger.activations(shape, mapped=True) == ledger.activations(shape, mask="dense") == here
