"""The file of a model's factors, and by what a model is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmu_jax import InputError, curvature, hf, trees
from mmu_jax.curvature import Factor
from toys import basis, dealt_rows, random_factors, rows_of_a_device, same

RNG = np.random.default_rng(0)


def test_a_file_gives_back_the_bits_where_the_weights_lie(llava, mesh, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    made = curvature.match(random_factors(model, params), params)
    curvature.save(tmp_path / "f", made, params)
    read = curvature.load(tmp_path / "f", params)
    same(read, made)
    for name, factor in curvature.by_name(read).items():
        assert rows_of_a_device(factor.basis) == dealt_rows(trees.flatten(params)[name], mesh), name


SMALL = {"a": {"w": jnp.asarray(RNG.normal(size=(3, 5, 4)), jnp.float32)}, "b": jnp.ones(5)}


@pytest.fixture
def written(tmp_path):
    made = {"a": {"w": Factor(jnp.asarray(basis(RNG, 3, width=4, count=2)), jnp.ones((3, 2)))}, "b": None}
    curvature.save(tmp_path / "f", made, SMALL)
    return tmp_path / "f"


def test_the_file_of_another_model_is_refused_by_both_prints(written):
    other = {"a": {"w": SMALL["a"]["w"].at[0, 0, 0].add(1.0)}, "b": SMALL["b"]}
    prints = [trees.fingerprint(tree) for tree in (other, SMALL)]
    with pytest.raises(InputError, match=rf"of this model \({prints[0]}\), found those of another \({prints[1]}\)"):
        curvature.load(written, other)
    with pytest.raises(InputError, match="do not fit this model"):
        curvature.save(written, {"c": Factor(jnp.eye(4), jnp.ones(4))}, SMALL)
    with pytest.raises(InputError, match="expected a place to write"):
        curvature.save(written / "below", {"a": {"w": None}}, SMALL)


def rewritten(path, change):
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        meta = file.metadata()
    arrays, meta = change(load_file(path), meta)
    save_file(arrays, str(path), metadata=meta)


def put(name, value):
    return lambda path: rewritten(path, lambda arrays, meta: (arrays | {name: value}, meta))


B, S = "a/w/basis", "a/w/strength"
DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "cut head": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not tensors"),
    "not there": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of another kind": lambda path: save_file({"w": np.ones(2)}, str(path), metadata={"mmu_jax.masks": "{}"}),
    "a print of another kind": lambda path: rewritten(path, lambda a, meta: (a, {"mmu_jax.factors": "[1]"})),
    "no strengths": lambda path: rewritten(path, lambda a, meta: ({B: a[B]}, meta)),
    "nothing": lambda path: rewritten(path, lambda a, meta: ({}, meta)),
    "more strengths": put(S, np.ones((3, 3), np.float32)),
    "strengths above 1": put(S, np.full((3, 2), 1.5, np.float32)),
    "strengths below 0": put(S, np.full((3, 2), -0.5, np.float32)),
    "strengths of NaN": put(S, np.full((3, 2), np.nan, np.float32)),
    "float64": put(S, np.ones((3, 2))),
    "an infinite basis": put(B, np.full((3, 4, 2), np.inf, np.float32)),
    "a leaf that is not there": lambda path: rewritten(path, lambda a, meta: (a | {"c/basis": a[B], "c/strength": a[S]}, meta)),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_holds_no_factors_is_one_line(written, name):
    curvature.load(written, SMALL)
    DAMAGE[name](written)
    with pytest.raises(InputError, match="make (the factors again|them for this model)"):
        curvature.load(written, SMALL)


def test_a_print_is_of_names_shapes_and_numbers():
    first = trees.fingerprint(SMALL)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), SMALL)
    assert trees.fingerprint(low) == trees.fingerprint(jax.tree.map(lambda x: x.astype(jnp.float32), low)) == first
    w, b = SMALL["a"]["w"], SMALL["b"]
    swapped = w.at[0, 0, 0].set(w[2, 1, 3]).at[2, 1, 3].set(w[0, 0, 0])
    others = [
        {"a": {"w": w.at[1, 2, 3].multiply(1.01)}, "b": b},
        {"a": {"w": swapped}, "b": b},
        {"a": {"w": w.swapaxes(0, 1)}, "b": b},
        {"a": {"w": w[::-1]}, "b": b},
        {"a": {"v": w}, "b": b},
        {"a": {"w": w}, "b": b.at[4].set(-1.0)},
        {"a": {"w": w}},
        {"a": {"w": w.reshape(5, 3, 4)}, "b": b},
    ]
    assert len({first, *map(trees.fingerprint, others)}) == 1 + len(others)
    assert trees.fingerprint({"b": b, "a": {"w": w}}) == first
