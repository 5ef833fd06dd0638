"""Greedy text equals transformers' own, on either padding side; sampling is seeded and stays in its nucleus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import generate, hf, memory, models, sharding, trees
from mmu_jax.data import text, tiny
from toys import make_batch
from twins import torch_inputs

NEVER = (95_000,)  # a stop id outside the vocabulary: all new tokens are compared


@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_tokens_equal_transformers(llava, images):
    import torch

    folder, reference, model = llava
    batch = make_batch(rows=4, side="left", images=images)
    inputs = torch_inputs(batch)
    del inputs["position_ids"]
    with torch.no_grad():
        theirs = reference.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = generate.generate(model, hf.load(folder, model), batch, new_tokens=9, stop=NEVER)
    np.testing.assert_array_equal(np.asarray(ours), theirs[:, batch["tokens"].shape[1] :].numpy())


def test_padding_side_and_neighbours_do_not_change_a_row(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    left = make_batch(rows=4, side="left")
    right = {name: array.copy() for name, array in left.items()}
    for row in range(4):
        order = np.argsort(~left["valid"][row], kind="stable")
        for name in ("tokens", "valid", "positions"):
            right[name][row] = left[name][row][order]
    a = generate.generate(model, params, left, new_tokens=6, stop=NEVER)
    b = generate.generate(model, params, right, new_tokens=6, stop=NEVER)
    alone = generate.generate(model, params, {k: v[1:2] for k, v in left.items()}, new_tokens=6, stop=NEVER)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    np.testing.assert_array_equal(np.asarray(a)[1:2], np.asarray(alone))


def test_rows_end_at_their_stop_token(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch(rows=4)
    free = np.asarray(generate.generate(model, params, batch, new_tokens=6, stop=NEVER))
    stop = int(free[0, 2])
    ended = np.asarray(generate.generate(model, params, batch, new_tokens=6, stop=(stop,)))
    for row, before in zip(ended, free, strict=True):
        at = np.flatnonzero(before == stop)
        until = at[0] if len(at) else len(before)
        np.testing.assert_array_equal(row[:until], before[:until])
        assert (row[until:] == stop).all()


def test_one_compilation_per_bucket(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    generate.generate(model, params, make_batch(rows=2, seed=1), new_tokens=3, stop=NEVER)
    before = generate._decode._cache_size()
    for seed in range(2, 5):
        generate.generate(model, params, make_batch(rows=2, seed=seed, side="left"), new_tokens=3, stop=NEVER)
    assert generate._decode._cache_size() == before


def test_sampling_is_seeded_and_a_tiny_nucleus_is_greedy(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch(rows=4)
    options = {"new_tokens": 8, "stop": NEVER}
    greedy = np.asarray(generate.generate(model, params, batch, **options))
    nucleus = generate.generate(model, params, batch, temperature=1.0, top_p=1e-6, **options)
    np.testing.assert_array_equal(np.asarray(nucleus), greedy)
    draws = [np.asarray(generate.generate(model, params, batch, temperature=2.0, seed=s, **options)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_every_mesh_says_the_same(llava, mesh):
    folder, _, model = llava
    batch, options = make_batch(side="left"), {"new_tokens": 6, "stop": NEVER}
    alone = np.asarray(generate.generate(model, hf.load(folder, model), batch, **options))
    with jax.set_mesh(mesh):
        found = generate.generate(model, hf.load(folder, model, mesh), sharding.put(batch, mesh), **options)
    np.testing.assert_array_equal(np.asarray(found), alone)


def test_the_cache_is_sharded_by_rows_and_heads(llava):
    """The program of four by two devices holds slices of the cache, never the whole of it."""
    folder, _, model = llava
    mesh = sharding.make_mesh(4, 2)
    params, batch = hf.load(folder, model, mesh), sharding.put(make_batch(), mesh)
    options = {"new_tokens": 6, "stop": NEVER, "temperature": 0.0, "top_p": 1.0}
    with jax.set_mesh(mesh):
        text = generate._decode.lower(model, params, batch, jax.random.key(0), **options).compile().as_text()
    whole, part = (model.make_cache(rows, 30)["k"].shape for rows in (8, 2))
    part = (*part[:3], part[3] // 2, part[4])
    assert "f32[" + ",".join(map(str, part)) + "]" in text
    assert "f32[" + ",".join(map(str, whole)) + "]" not in text


def test_prompts_of_several_lengths_share_a_compilation_per_size(llava):
    folder, _, model = llava
    params, processor = hf.load(folder, model), tiny.processor()
    asked = ["Who?", "Who is this person, and why?", "Where was this person born, if anyone knows it by now at all?"]
    rows = text.encode_prompts(processor, asked, 0)
    rows = type(rows)([row % 96 for row in rows.tokens], rows.weights, rows.pad, 95, rows.side)
    lengths = rows.lengths(0)
    sizes, before = (int(lengths[1]) + 1, int(lengths[2]) + 1), generate._decode._cache_size()
    for index in ([0], [1], [2], [0], [2]):
        batch = rows.batch(index, [[]], sizes)
        generate.generate(model, params, batch, new_tokens=3, stop=NEVER)
    assert generate._decode._cache_size() == before + 2


def test_for_decoding_params_are_whole_along_data_where_there_is_room(llava, mesh, monkeypatch):
    folder, _, model = llava
    params, batch = hf.load(folder, model, mesh), make_batch(rows=8, side="left")
    held = generate.for_decoding(model, params, mesh)
    if mesh.shape["data"] == 1:
        assert held is params, "nothing is gained"
        return
    for name, leaf in trees.flatten(held).items():
        assert "data" not in jax.tree.leaves(tuple(leaf.sharding.spec)), name
    planned = memory.Ledger(model, mesh).decoding()
    assert planned == sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(held))
    with jax.set_mesh(mesh):
        same = [
            generate.generate(model, p, sharding.put(batch, mesh), new_tokens=4, stop=NEVER) for p in (params, held)
        ]
    np.testing.assert_array_equal(*map(np.asarray, same))
    monkeypatch.setattr(memory, "capacity", lambda mesh: 3 * planned - 1)
    assert generate.for_decoding(model, params, mesh) is params


def test_for_decoding_params_are_in_the_dtype_that_is_computed_in(llava):
    folder, _, model = llava
    coarse, mesh = models.Model(model.config, jnp.bfloat16), sharding.make_mesh(1)
    held = generate.for_decoding(coarse, hf.load(folder, model), mesh)
    for name, x in trees.flatten(held).items():
        assert x.dtype == (jnp.float32 if x.ndim - trees.stacked(name) < 2 else jnp.bfloat16), name
    assert memory.Ledger(coarse, mesh).generation(memory.Shape(1, 8), 8)["params for decoding"] == trees.nbytes(held)
    assert "params for decoding" not in memory.Ledger(coarse, mesh, jnp.bfloat16).generation(memory.Shape(1, 8), 8)
