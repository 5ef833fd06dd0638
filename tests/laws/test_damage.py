"""A flipped bit of a mask or of factors on disk is never read: what is loaded is what was saved, or one line says what to do."""

import json
import os
import random
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mmu_jax import InputError, curvature, factor, masks
from toys import basis

PARAMS = {"a": {"w": jnp.arange(60.0).reshape(3, 5, 4)}, "b": jnp.ones(7)}
MASK = {"a": {"w": jax.random.bernoulli(jax.random.key(0), 0.4, (3, 5, 4))}, "b": jnp.ones(7, bool)}
FACTORS = {
    "a": {"w": curvature.Factor(jnp.asarray(basis(np.random.default_rng(0), 3, width=4, count=2)), jnp.ones((3, 2)))},
    "b": None,
}
FILES = {
    "a mask": (lambda path: masks.save(path, MASK), lambda path: masks.load(path, PARAMS), "mask"),
    "factors": (
        lambda path: curvature.save(path, FACTORS, PARAMS, people=["0007", "0012"]),
        lambda path: (curvature.load(path, PARAMS), factor.people(path)),
        "factors",
    ),
    "the people of factors": (
        lambda path: curvature.save(path, FACTORS, PARAMS, people=["0007", "0012"]),
        factor.people,
        "factors",
    ),
}


def equal(first, second):
    leaves = (jax.tree.leaves(first), jax.tree.leaves(second))
    return len(leaves[0]) == len(leaves[1]) and all(map(np.array_equal, *leaves))


@pytest.mark.parametrize("what", FILES)
def test_no_flipped_bit_is_read(what, tmp_path):
    save, load, kind = FILES[what]
    path, draw, refusals = tmp_path / "x.safetensors", random.Random(0), 0
    save(path)
    content, right = path.read_bytes(), load(path)
    for _ in range(120):
        bit, damaged = draw.randrange(8 * len(content)), bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert equal(load(path), right), bit
        except InputError as error:
            refusals += 1
            assert any(
                words in str(error) for words in (f"make the {kind} again", "copy it again", "or make one", "give it")
            )
            assert "\n" not in str(error) and str(path) in str(error)
    assert refusals > (30 if what == "the people of factors" else 110)  # those of the arrays are nothing to the head


def headers(path, key):
    with safe_open(str(path), framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[key])


@pytest.mark.parametrize(("what", "key"), [("a mask", "mmu_jax.mask"), ("factors", "mmu_jax.factors")])
def test_without_a_hash_none_is_read(what, key, tmp_path):
    save, load, kind = FILES[what]
    save(tmp_path / "x.safetensors")
    arrays, told = headers(tmp_path / "x.safetensors", key)
    del told["sha256"]
    save_file(arrays, str(tmp_path / "y.safetensors"), metadata={key: json.dumps(told)})
    with pytest.raises(InputError, match=f"y.safetensors.*make the {kind} again"):
        load(tmp_path / "y.safetensors")


@pytest.mark.parametrize("what", ["a mask", "factors"])
def test_files_are_of_the_mode_that_the_umask_says(what, tmp_path, umask):
    FILES[what][0](tmp_path / "x")
    (tmp_path / "y").touch()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "y").stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)
