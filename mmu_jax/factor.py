"""The directions of a weight that are to be left alone, how an update is kept out of them, and their file.

They are made by ``curvature``, which has all that is here by the same names.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, sharding, trees
from mmu_jax.files import open_as_umask_says, sealed
from mmu_jax.trees import Params, Tree

Factors = Tree  # Factor where a weight is protected, None elsewhere
EXACT = jax.lax.Precision.HIGHEST  # a direction left out to three digits is a direction that leaks


class Factor(flax.struct.PyTreeNode):
    """Directions of a weight's input, and how much of each an update loses.

    Attributes:
      basis: ``[..., in, k]`` float32, orthonormal columns; leading axes are those of the weight.
      strength: ``[..., k]`` float32 from 0 to 1: 1 takes the whole of a direction out; 0 fills up layers that have fewer.
      inputs: which axis of the weight is its input: -1 for ``[..., out, in]``, -2 for kernels ``[..., in, out]``.
    """

    basis: jax.Array
    strength: jax.Array
    inputs: int = flax.struct.field(pytree_node=False, default=-1)


def is_factor(x: object) -> bool:
    return isinstance(x, Factor)


def keep_out(factor: Factor, x: jax.Array) -> jax.Array:
    """``x [..., out, in]`` without what lies along the factor: ``x - ((x U) * strength) U^T``, in float32.

    >>> u = Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1))
    >>> keep_out(u, jnp.array([[3.0, 4.0]])).tolist()
    [[0.0, 4.0]]
    """
    if x.ndim > 2:  # a layer after the other: of a basis that devices share each gathers no more
        return jax.lax.map(lambda layer: keep_out(*layer), (factor, x))
    rows = "oi" if factor.inputs == -1 else "io"
    along = jnp.einsum(f"{rows},ik->ok", x, factor.basis, precision=EXACT) * factor.strength
    return x - jnp.einsum(f"ok,ik->{rows}", along, factor.basis, precision=EXACT)


def by_name(factors: Factors) -> dict[str, Factor]:
    """Leaf name -> its factor."""
    return trees.flatten(factors, is_leaf=is_factor)


def match(factors: Factors, tree: Tree) -> Tree:
    """A :class:`Factor` for each leaf of ``tree`` that has one, None for every other; the structure is that of ``tree``.

    Raises:
      InputError: factors of a leaf that ``tree`` does not have, or that is no matrix, or of another size than its input.
    """
    found, leaves = by_name(factors), trees.flatten(tree)
    faults = [f"{name} is not a leaf of the model" for name in sorted(found.keys() - leaves.keys())]
    faults += [f"{n} {said}" for n, f in found.items() if n in leaves and (said := _misfit(f, leaves[n].shape))]
    if faults:
        raise InputError(
            f"the factors do not fit this model, {len(faults)} leaves differ: {'; '.join(faults[:4])}; make them for this model"
        )
    return trees.map_named(lambda name, _: found.get(name), tree)


def _misfit(factor: Factor, shape: tuple[int, ...]) -> str:
    """What keeps a factor from being one of a weight of ``shape``; empty where nothing does."""
    if not is_factor(factor) or len(shape) < 2:
        return f"of shape {shape} has {type(factor).__name__}, expected a matrix with a Factor"
    inputs, found = (*shape[:-2], shape[factor.inputs]), (factor.basis.shape[:-1], factor.strength.shape)
    if found[0] != inputs:
        return f"has inputs {found[0]}, expected {inputs}"
    expected = (*inputs[:-1], factor.basis.shape[-1])
    return "" if found[1] == expected else f"has strengths {found[1]}, expected {expected}"


def along_inputs(weight: jax.Array | jax.ShapeDtypeStruct, inputs: int) -> jax.sharding.NamedSharding | None:
    """Where an array ``[..., in, any]`` of a weight is to lie: its second last axis over every mesh axis that the weight lies along.

    So a Gram takes as small a share of each device as the weight does. Where its inputs do not divide by all of them, they
    lie as those of the weight; a weight that lies on one device has None.
    """
    where, ndim = getattr(weight, "sharding", None), len(weight.shape)
    if not isinstance(where, jax.sharding.NamedSharding):
        return None
    spec = (*where.spec, *(None,) * (ndim - len(where.spec)))
    own, other = (_axes(spec[axis]) for axis in (inputs, -1 if inputs == -2 else -2))
    shared = math.prod(where.mesh.shape[axis] for axis in (*own, *other))
    axes = (*own, *other) if weight.shape[inputs] % shared == 0 else own
    return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*spec[:-2], axes or None, None))


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a PartitionSpec."""
    return entry if isinstance(entry, tuple) else (entry,) if isinstance(entry, str) else ()


# ---- the file of a model


def save(path: str | pathlib.Path, made: Factors, params: Params, *, people: Sequence[str] = ()) -> None:
    """Writes factors as one safetensors file, with the print of the model they were made for (``trees.fingerprint``) and hashes.

    ``people``: the ids of those whose faces were measured, where there are any. Of several processes all call, and the main one
    writes.

    Raises:
      InputError: factors do not fit ``params``, or there is no place to write the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    match(made, params)
    arrays = {}
    for name, factor in by_name(made).items():
        arrays |= {f"{name}/{part}": sharding.host(getattr(factor, part)) for part in ("basis", "strength")}
    # One key of metadata: safetensors writes several in no fixed order.
    told = {
        "model": trees.fingerprint(params),
        "people": list(people),
        "inputs": {name: factor.inputs for name, factor in by_name(made).items()},
        "arrays": _hash(arrays),
    }
    if not sharding.main():
        return
    try:
        save_file(arrays, str(path), metadata={"mmu_jax.factors": json.dumps(sealed(told))})
        open_as_umask_says(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected a place to write the factors to, found that {path} is none ({error}); make its folder or free it"
        ) from error


def _hash(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, dtypes and shapes."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def head(path: str | pathlib.Path) -> dict[str, Any]:
    """What a file of factors says of itself: ``model``, the print of it; ``people`` who were measured; ``inputs`` of weights; the
    hash of its ``arrays``.

    Raises:
      InputError: it is not there, or no such file, or that is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            told = json.loads((file.metadata() or {})["mmu_jax.factors"])
        shape = {key: type(told[key]) for key in ("model", "people", "inputs", "arrays", "sha256")}
        kinds = {"model": str, "people": list, "inputs": dict, "arrays": str, "sha256": str}
        sound = shape == kinds and {*told["inputs"].values()} <= {-1, -2}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected a file written by curvature.save, found {path} which is damaged, not there or another "
            f"({type(error).__name__}: {error}); give one that is, or make the factors again"
        ) from error
    if not sound:
        raise InputError(f"expected the head of a file of factors in {path}, found another; make the factors again")
    if told != sealed(told):
        raise InputError(
            f"expected the head of {path} as it was written, found it damaged or altered (its SHA-256 is another); make the factors again"
        )
    return told


def people(path: str | pathlib.Path) -> list[str]:
    """The ids of those whose faces were measured for a file of factors."""
    return head(path)["people"]


def load(path: str | pathlib.Path, params: Params) -> Factors:
    """Reads factors written by :func:`save` for ``params``, in their structure, sharded along the inputs of each weight.

    >>> import tempfile
    >>> path, params = pathlib.Path(tempfile.mkdtemp()) / 'f.safetensors', {'w': jnp.ones((1, 2)), 'b': jnp.ones(1)}
    >>> save(path, {'w': Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1)), 'b': None}, params)
    >>> load(path, params)['w'].basis.tolist(), load(path, params)['b']
    ([[1.0], [0.0]], None)

    Raises:
      InputError: the file is damaged, altered or holds no factors, or they are those of another model.
    """
    from safetensors import SafetensorError, safe_open

    told = head(path)
    if told["model"] != (own := trees.fingerprint(params)):
        raise InputError(
            f"expected factors of this model ({own}), found those of another ({told['model']}) in {path}; give the file that was "
            "made with this model, or make one"
        )
    try:
        with safe_open(str(path), framework="np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"expected a whole file of factors, found {path} damaged ({error}); copy it again") from error
    if told["arrays"] != _hash(arrays):
        raise InputError(
            f"expected {path} as it was written, found it damaged or altered (the SHA-256 of its arrays is another); make the factors again"
        )
    names = sorted({key.rpartition("/")[0] for key in arrays})
    odd = [n for n in names if {f"{n}/basis", f"{n}/strength"} - arrays.keys()]
    odd += [n for n in names if n not in odd and not _whole(arrays[f"{n}/basis"], arrays[f"{n}/strength"])]
    if odd or not names:
        raise InputError(
            f"expected a basis and strengths of every weight in {path}, found {odd}; make the factors again"
        )
    read = {n: Factor(arrays[f"{n}/basis"], arrays[f"{n}/strength"], told["inputs"].get(n, -1)) for n in names}

    def leaf(p, factor):
        if factor is None:
            return None
        basis = sharding.place(factor.basis, along_inputs(p, factor.inputs))
        return Factor(basis, jnp.asarray(factor.strength), factor.inputs)

    return jax.tree.map(leaf, params, match(read, params))


def _whole(basis: np.ndarray, strength: np.ndarray) -> bool:
    fits = basis.ndim >= 2 and strength.shape == (*basis.shape[:-2], basis.shape[-1])
    sound = all(x.dtype == np.float32 and np.isfinite(x).all() for x in (basis, strength))
    return fits and sound and bool((strength >= 0).all() and (strength <= 1).all())
