"""Hugging Face checkpoint directories in and out.

The parameter tree *is* the checkpoint: the same names, the same ``(out, in)`` shapes, layers stacked on axis 0. A
model's ``HF_NAMES`` turns any spelling on disk into the dotted name of its tree; ``layers.7.`` is row 7 of the leaf
under ``layers``. Loading is strict both ways. Saving rewrites the source directory: tensors we own are replaced, all
else is copied through, names, dtypes and file boundaries kept.
"""

import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors.numpy import save_file

from mmu_jax import InputError, models, sharding, trees
from mmu_jax.data import Processor
from mmu_jax.directory import INDEX, SINGLE, Path, Tensor, carried, check_links, complete, weights, write
from mmu_jax.directory import tensors as _tensors
from mmu_jax.directory import weights as files
from mmu_jax.files import open_as_umask_says
from mmu_jax.models import config as configs
from mmu_jax.models.layers import Config, Dtype
from mmu_jax.models.processors import read_processor, stop_tokens
from mmu_jax.trees import Params, Tree

__all__ = [
    "INDEX",
    "SINGLE",
    "Processor",
    "create",
    "files",
    "hub_name",
    "load",
    "module_name",
    "places",
    "read_config",
    "read_processor",
    "rename",
    "rewrite",
    "save",
    "stop_tokens",
    "survey",
]

STACK = re.compile(r"\.(layers|blocks)\.(\d+)\.")
BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)$")  # in old files; constants, copied through
READERS = min(os.cpu_count() or 1, 8)  # layers read at once: copying and looking at numbers leave Python to others
HEAD, EMBED = "lm_head/weight", "language_model/embed_tokens/weight"
log = logging.getLogger(__name__)


def read_config(path: Path) -> Config:
    """The ``transformers`` config of a checkpoint directory, untied where its files hold a head of their own.

    Raises:
      InputError: it is damaged, describes a model that our networks are not, or an adapter lies beside it.
    """
    config = configs.read(path)
    if not complete(path):
        return config
    found = weights(path)  # refuses what would change what the config means
    if config.tie_word_embeddings:
        table, _ = _catalogue(found, models.MODELS[config.model_type].names)
        if not _tied(table):
            config.tie_word_embeddings = False
            log.warning(
                "%s: lm_head is not the embedding although tie_word_embeddings is set; it is kept apart, as transformers does",
                path,
            )
    return config


def _tied(table: dict[tuple[str, int | None], Tensor]) -> bool:
    """Whether the head, if the files have one, is the embedding; compared in blocks of rows."""
    head, embed = table.get((HEAD, None)), table.get((EMBED, None))
    if head is None or embed is None:
        return True
    if (head.shape, head.dtype) != (embed.shape, embed.dtype):
        return False
    a, b, block = head.map(), embed.map(), 4096
    return all(np.array_equal(a[i : i + block], b[i : i + block]) for i in range(0, len(a), block))


def rename(key: str, names: list[tuple[str, str]]) -> tuple[str, int | None]:
    """A name on disk -> (leaf name in the tree, row of the stacked leaf or None).

    >>> rename('model.language_model.layers.7.mlp.up_proj.weight', [(r'^model\\.', '')])
    ('language_model/layers/mlp/up_proj/weight', 7)
    """
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    found = STACK.search(key)
    row = int(found.group(2)) if found else None
    return STACK.sub(r".\1.", key).replace(".", "/"), row


def _catalogue(
    found: list[pathlib.Path], names: list[tuple[str, str]]
) -> tuple[dict[tuple[str, int | None], Tensor], list[str]]:
    """Every tensor of the files by (leaf name, row), and the keys that say the same thing twice."""
    table, twice = {}, []
    for tensor in (tensor for file in found for tensor in _tensors(file)):
        place = rename(tensor.key, names)
        if place in table:
            twice.append(tensor.key)
        table[place] = tensor
    return table, twice


def places(name: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
    """Where the tensors of a leaf go: ``(name, row)`` for every layer of a stacked one, else ``(name, None)``."""
    return [(name, row) for row in range(shape[0])] if trees.stacked(name) else [(name, None)]


def survey(path: Path, model: models.Model) -> dict[tuple[str, int | None], Tensor]:
    """Every tensor of the directory by (leaf name, row of the stacked leaf or None).

    Raises:
      InputError: a tensor is missing, misshapen, extra, there twice, or of a dtype that cannot be trained; one error lists
        them all. Or the model is tied and the head is another than its embedding; or a file is a link out of the directory.
    """
    check_links(path)
    abstract, family = trees.flatten(model.abstract()), model.family
    table, twice = _catalogue(weights(path), family.names)
    tied = model.config.tie_word_embeddings
    if tied and not _tied(table):
        raise InputError(
            f"expected lm_head to be the embedding (tie_word_embeddings), found another in {path}, read after its config; start "
            "again now that the weights are here, or set tie_word_embeddings to false in its config.json"
        )
    if tied and (EMBED, None) not in table and (HEAD, None) in table:
        table[EMBED, None] = table.pop((HEAD, None))  # either name will do
    faults, owned = [f"{key} is there twice" for key in twice], {(HEAD, None)} if tied else set()
    for name, leaf in abstract.items():
        for place in places(name, leaf.shape):
            owned.add(place)
            shape = leaf.shape if place[1] is None else leaf.shape[1:]
            label = name if place[1] is None else f"{name}[{place[1]}]"
            if place not in table:
                faults.append(f"{label} is missing")
            elif table[place].shape != shape:
                faults.append(f"{table[place].key} has shape {table[place].shape}, expected {shape}")
            elif not jnp.issubdtype(table[place].dtype, jnp.floating):
                faults.append(f"{table[place].key} is {table[place].dtype}, expected floating point")
    known = {rename(key, []) for key in family.unread(model.config)}
    for place, tensor in table.items():
        if place not in owned and place not in known and not BUFFERS.match(tensor.key):
            faults.append(f"{tensor.key} is not a tensor of this model")
    if faults:
        shown = "; ".join(faults[:10]) + ("; ..." if len(faults) > 10 else "")
        raise InputError(
            f"expected a {model.config.model_type} checkpoint that fits its config.json, found {len(faults)} faults in "
            f"{path}: {shown}; copy the checkpoint again or correct its config"
        )
    return table


def _place(tensors: list[Tensor], stacked: bool, dtype: Dtype, where: NamedSharding, pool: Executor) -> jax.Array:
    """A leaf on its devices, of which each is given its own slice, read from the files when it is its turn, layers side by side."""
    shape, held, last = (len(tensors), *tensors[0].shape) if stacked else tensors[0].shape, [], None

    def fill(there, tensor):
        there[...] = tensor.map()[index[1:] if stacked else index]
        _check_finite(there, f"{tensor.key} of {tensor.file}")

    for device, index in where.addressable_devices_indices_map(shape).items():
        if index != last:  # neighbours that hold the same share what was read
            last, read = index, sharding.room(where.shard_shape(shape), dtype)
            if stacked:
                list(pool.map(lambda one: fill(*one), zip(read, tensors[index[0]], strict=True)))
            else:
                fill(read, tensors[0])
        held.append(jax.block_until_ready(jax.device_put(read, device)))  # before the next is read
    return jax.make_array_from_single_device_arrays(shape, where, held)


def _check_finite(value: np.ndarray, where: str) -> None:
    # The ends of a range say it in half the time of a look at every number, which numpy has to write down first.
    wide = value.dtype.itemsize > 2 and value.size
    if not np.isfinite([value.min(), value.max()] if wide else value).all():
        raise InputError(f"expected finite numbers, found NaN or infinity in {where}; give a checkpoint that is whole")


def load(path: Path, model: models.Model, mesh: Mesh | None = None, dtype: Dtype | None = jnp.float32) -> Tree:
    """Reads a checkpoint directory into the model's parameter tree, each device reading only its own slices.

    The host holds what one device holds of one leaf beside what is resident on the devices.

    Args:
      path: directory with config.json and safetensors, single file or sharded.
      model: ``models.Model(hf.read_config(path))``.
      mesh: where the params go, by the model's ``RULES``; default all on one device.
      dtype: of the params in memory; None keeps that of the files.
    Raises:
      InputError: what :func:`survey` refuses, a file is damaged, or a weight is not finite.
    """
    mesh = mesh or sharding.make_mesh(1)
    table = survey(path, model)
    abstract = model.abstract()

    def leaf(name, shape, where):
        sources = [table[place] for place in places(name, shape.shape)]
        kind = jnp.result_type(*(tensor.dtype for tensor in sources)) if dtype is None else np.dtype(dtype)
        return jax.block_until_ready(_place(sources, trees.stacked(name), kind, where, pool))

    placed = sharding.shardings(abstract, model.family.rules, mesh)
    with ThreadPoolExecutor(READERS) as pool:
        return trees.map_named(leaf, abstract, placed)


def rewrite(
    model: models.Model,
    source: Path,
    out: Path,
    change: Callable[[str, int | None, np.ndarray], Any],
    unread: bool = False,
) -> dict[str, int]:
    """A copy of the checkpoint directory ``source`` in which the tensors of the model's tree are changed in place.

    Names, dtypes, order and file boundaries stay, as do tensors we never read; of the other files go along those that
    ``directory.carried`` names. The host holds one tensor at a time. ``out`` appears only when it is complete. A tied head
    that is in the files is changed as the embedding is. Of several processes all call, each tensor is gathered from their devices,
    and the main one writes.

    Args:
      change: ``(leaf name, row of the stacked leaf or None, tensor in the file) -> its new values``, or None to keep it.
      unread: whether ``change`` is asked about tensors that the model never reads, too.
    Returns:
      leaf name -> how many of its entries differ from the source's, in the dtype of the file.
    Raises:
      InputError: ``source`` does not fit the model, see :func:`survey`; a new value is not finite; or the disk refuses.
    """
    source, abstract = pathlib.Path(source), trees.flatten(model.abstract())
    owned: dict[pathlib.Path, list] = {}
    for (name, row), tensor in survey(source, model).items():
        place = EMBED if name == HEAD and HEAD not in abstract else name
        if unread or place in abstract and (row is None or row < abstract[place].shape[0]):
            owned.setdefault(tensor.file, []).append((place, row, tensor))
    changed: dict[str, int] = {}

    def values(file):
        for name, row, tensor in sorted(owned.get(file, ()), key=lambda one: one[-1].offset):
            if (value := change(name, row, tensor.map())) is not None:
                value = sharding.host(value).astype(tensor.dtype)
                if value.shape != tensor.shape:
                    raise InputError(
                        f"expected new values of shape {list(tensor.shape)} for {tensor.key}, found {list(value.shape)}; correct the change"
                    )
                _check_finite(value, f"what would be written as {tensor.key} of {out}")
                before = changed.get(name, 0) if row is not None else 0  # a tied head is no second leaf
                changed[name] = before + int(np.count_nonzero(tensor.map() != value))
                yield tensor, value

    def fill(folder):
        shards = weights(source)
        for file in shards:
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True, parents=True)
            _write_over(file, copy, values(file))
        index = [] if shards == [source / SINGLE] else [INDEX]
        for name in [*carried(source), *index]:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)

    if sharding.main():
        write(out, fill)
    else:  # a part in every gather, in the same order
        [None for file in weights(source) for _ in values(file)]
    return changed


def _write_over(file: pathlib.Path, copy: pathlib.Path, values: Iterable[tuple[Tensor, np.ndarray]]) -> None:
    """A copy of a file in which tensors, in the order in which they stand there, have new values: every byte is written once."""
    with file.open("rb") as old, copy.open("wb") as new:
        for tensor, value in values:
            while left := tensor.offset - old.tell():
                new.write(old.read(min(left, 2**20)))
            new.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
            old.seek(value.nbytes, os.SEEK_CUR)
        shutil.copyfileobj(old, new, 2**20)


def save(params: Params, model: models.Model, source: Path, out: Path) -> dict[str, int]:
    """Writes ``params`` as a copy of the checkpoint directory ``source``: ``save(load(x)) == x``, byte for byte.

    Returns and raises what :func:`rewrite` does; InputError too if ``params`` are not those of the model.
    """
    trees.check_like(params, model.abstract(), "the params to save")
    leaves = trees.flatten(params)
    return rewrite(model, source, out, lambda name, row, _: leaves[name] if row is None else leaves[name][row])


def create(params: Params, model: models.Model, processor: Processor, out: Path, seed: int = 0) -> None:
    """Writes a new checkpoint directory from nothing: config, processor, ``params`` and random unread tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in trees.flatten(params).items():
        value = sharding.host(leaf)
        for place, row in places(name, value.shape):
            tensors[hub_name(place, row, model)] = value if row is None else np.ascontiguousarray(value[row])
    for name, shape in model.family.unread(model.config).items():
        place, row = rename(name, [])
        constant = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = 0.02 * rng.standard_normal(shape) if len(shape) > 1 else np.full(shape, constant)
        tensors[hub_name(place, row, model)] = noise.astype(np.float32)

    # As torch names its class: other programs find the network by it.
    model.config.architectures = [type(model.config).__name__.replace("Config", "ForConditionalGeneration")]

    def fill(folder):
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_file(dict(sorted(tensors.items())), str(folder / SINGLE), metadata={"format": "pt"})
        open_as_umask_says(folder / SINGLE)

    write(out, fill)


def hub_name(name: str, row: int | None, model: models.Model) -> str:
    """The name on the hub of a tensor of the tree; :func:`rename` undoes it."""
    return _spelled(name, row, model.family.hub_names)


def module_name(name: str, row: int | None, model: models.Model) -> str:
    """The name of a tensor of the tree in the model's class in ``transformers``; :func:`rename` undoes it."""
    return _spelled(name, row, model.family.module_names)


def _spelled(name: str, row: int | None, names: list[tuple[str, str]]) -> str:
    key = name.replace("/", ".")
    if row is not None:
        key = re.sub(r"\.(layers|blocks)\.", rf".\1.{row}.", key, count=1)
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key
