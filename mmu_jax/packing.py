"""Masks on disk: a bit an entry, and a header of names and shapes with a hash of all of it."""

import hashlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, sharding, trees
from mmu_jax.files import open_as_umask_says
from mmu_jax.trees import Mask, Params


def save(path: str | pathlib.Path, mask: Mask) -> None:
    """Writes ``mask`` bit-packed: one safetensors file, ``ceil(n / 8)`` bytes of bits and a header of names, shapes and a hash.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / 'mask.safetensors'
    >>> save(path, {'w': jnp.array([True, False])})
    >>> load(path, {'w': jnp.zeros(2)})
    {'w': Array([ True, False], dtype=bool)}

    Of several processes all call, and the main one writes.

    Raises:
      InputError: it is no mask, or there is no place to write it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    trees.check_mask(mask, "save")
    leaves = trees.flatten(mask)
    shapes = {name: list(leaf.shape) for name, leaf in leaves.items()}
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
    packed, start = np.zeros(-(-total // 8), np.uint8), 0
    for leaf in leaves.values():  # leaf by leaf, so that the host never holds a byte for every bit of the whole
        flat = sharding.host(leaf).reshape(-1)
        shift = start % 8
        bits = np.packbits(np.concatenate([np.zeros(shift, bool), flat]))
        packed[start // 8 : start // 8 + len(bits)] |= bits
        start += len(flat)
    if not sharding.main():
        return
    # One key of metadata: safetensors writes several in no fixed order, and the same mask should be the same bytes.
    told = {"shapes": shapes, "sha256": _hash(shapes, packed)}
    try:
        save_file({"bits": packed}, str(path), metadata={"mmu_jax.mask": json.dumps(told)})
        open_as_umask_says(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected a place to write the mask to, found that {path} is none ({error}); make its folder or free it"
        ) from error


def _hash(shapes: dict[str, list[int]], bits: np.ndarray) -> str:
    """SHA-256 of what a mask is: the names and shapes, in their order, and the bits."""
    found = hashlib.sha256(json.dumps(shapes).encode())
    found.update(np.ascontiguousarray(bits).view(np.uint8).data)
    return found.hexdigest()


def load(path: str | pathlib.Path, params: Params) -> Mask:
    """Reads a mask written by :func:`save` for ``params``, with their structure and sharding.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / 'mask.safetensors'
    >>> save(path, {'w': jnp.ones((3, 4), bool)})
    >>> load(path, {'w': jnp.zeros((3, 4))})['w'].shape
    (3, 4)

    Raises:
      InputError: the file is not a mask, is not as it was written, or its names or shapes are not those of ``params``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            meta, bits = file.metadata() or {}, file.get_tensor("bits") if "bits" in file.keys() else None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected a mask file, found {path} which is damaged or not there ({error}); make the mask again"
        ) from error
    if bits is None or "mmu_jax.mask" not in meta:
        raise InputError(f"expected a file written by masks.save, found {path} which is not; give it the mask's path")
    try:
        told = json.loads(meta["mmu_jax.mask"])
        shapes, written = told["shapes"], told["sha256"]
        stored = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.bool_) for name, shape in shapes.items()}
        whole = bits.dtype == np.uint8 and len(bits) == -(-sum(math.prod(shape) for shape in shapes.values()) // 8)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"expected names, shapes and a hash in the header of {path}, found others; make the mask again"
        ) from error
    if not whole:
        raise InputError(
            f"expected a bit for every entry in {path}, found {bits.dtype}{bits.shape}; make the mask again"
        )
    if written != _hash(shapes, bits):
        raise InputError(
            f"expected {path} as it was written, found that it is damaged or altered (its SHA-256 is another); make the mask again"
        )
    trees.check_like(stored, trees.flatten(params), f"the mask {path}")
    offsets = dict(zip(shapes, np.cumsum([0] + [int(np.prod(s)) for s in shapes.values()]), strict=False))

    def leaf(name, p):
        start, n = int(offsets[name]), int(np.prod(p.shape))
        part = np.unpackbits(bits[start // 8 : -(-(start + n) // 8)])[start % 8 : start % 8 + n]
        return sharding.place(part.view(bool).reshape(p.shape), getattr(p, "sharding", None))

    return trees.map_named(leaf, params)
