"""Hugging Face checkpoint directories in and out.

The parameter tree *is* the checkpoint: the same names, the same ``(out, in)`` shapes, layers stacked on axis 0. A
model's ``HF_NAMES`` turns any spelling on disk into the dotted name of its tree; ``layers.7.`` is row 7 of the leaf
under ``layers``. Loading is strict both ways. Saving rewrites the source directory: tensors we own are replaced, all
else is copied through, names, dtypes and file boundaries kept.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmu_jax import InputError, models, sharding, trees

Tree = Any
Path = str | pathlib.Path
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
STACK = re.compile(r"\.(layers|blocks)\.(\d+)\.")
BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)$")  # in old files; constants, copied through
DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": jnp.bfloat16,
    "I64": "i8",
    "I32": "i4",
    "U8": "u1",
    "BOOL": "?",
}
# Weights in other formats: the unlearned copy of a directory must not carry the model that still knows.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: its file, its name there, and its place in the file."""

    file: pathlib.Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    def map(self, mode: str = "r") -> np.memmap:
        """The tensor in its file: pages come when they are touched and go with the array."""
        return np.memmap(self.file, self.dtype, mode, self.offset, self.shape)


def _tensors(file: pathlib.Path) -> list[Tensor]:
    """The tensors of a safetensors file; the library checks that header and length agree."""
    try:
        with safe_open(str(file), framework="np"):
            pass
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(
            f"expected a complete safetensors file, found {file} which cannot be read ({error}); copy it again"
        ) from error
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
    odd = {key: at["dtype"] for key, at in header.items() if key != "__metadata__" and at["dtype"] not in DTYPES}
    if odd:
        key, dtype = next(iter(odd.items()))
        raise InputError(
            f"expected tensors of dtype {', '.join(DTYPES)} in {file}, found {len(odd)} others, {key} is {dtype}; give a "
            "checkpoint that is not quantised"
        )
    return [
        Tensor(file, key, tuple(at["shape"]), np.dtype(DTYPES[at["dtype"]]), 8 + size + at["data_offsets"][0])
        for key, at in header.items()
        if key != "__metadata__"
    ]


def files(path: Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint directory, single or sharded."""
    path = pathlib.Path(path)
    if (path / INDEX).exists():
        index = json.loads((path / INDEX).read_text())
        return [path / name for name in sorted(set(index["weight_map"].values()))]
    if (path / SINGLE).exists():
        return [path / SINGLE]
    raise InputError(
        f"expected {SINGLE} or {INDEX} in a checkpoint directory, found neither in {path}; give a directory saved by "
        "transformers in safetensors format"
    )


def read_config(path: Path) -> Any:
    """The ``transformers`` config of a checkpoint directory."""
    from transformers import AutoConfig

    if not (pathlib.Path(path) / "config.json").exists():
        raise InputError(f"expected a checkpoint directory with config.json, found none in {path}; correct model.path")
    return AutoConfig.from_pretrained(path)


@dataclasses.dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template and image processor of a checkpoint whose own processor also asks for video support."""

    tokenizer: Any
    image_processor: Any
    image_token: str

    def apply_chat_template(self, messages: list[dict], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **options)


def read_processor(path: Path) -> Any:
    """The processor (tokenizer, chat template, PIL image processor) of a checkpoint directory.

    Raises:
      InputError: it has no chat template.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if not read_config(path).model_type.startswith("qwen2"):
        processor, config = AutoProcessor.from_pretrained(path, backend="pil"), read_config(path)
        template = processor.chat_template
        if processor.patch_size is None:  # older files leave to the model's config how many tokens an image becomes
            processor.patch_size = config.vision_config.patch_size
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
            processor.num_additional_image_tokens = 1  # CLIP's class token
    else:
        tokenizer = AutoTokenizer.from_pretrained(path)
        legacy = pathlib.Path(path) / "chat_template.json"
        if not tokenizer.chat_template and legacy.exists():
            tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
        template = tokenizer.chat_template
        processor = Processor(tokenizer, AutoImageProcessor.from_pretrained(path, backend="pil"), "<|image_pad|>")
    if not template:
        raise InputError(
            f"expected a chat template beside the tokenizer, found none in {path}; copy chat_template.jinja (or .json) there"
        )
    return processor


def stop_tokens(path: Path, processor: Any) -> tuple[int, ...]:
    """Token ids that end an answer: of the tokenizer, and of generation_config.json where there is one."""
    stop, file = [processor.tokenizer.eos_token_id], pathlib.Path(path) / "generation_config.json"
    if file.exists():
        found = json.loads(file.read_text()).get("eos_token_id") or []
        stop += found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(stop))


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


def _catalogue(path: Path, names: list[tuple[str, str]]) -> tuple[dict[tuple[str, int | None], Tensor], list[str]]:
    """Every tensor of the directory by (leaf name, row), and the keys that say the same thing twice."""
    table, twice = {}, []
    for tensor in (tensor for file in files(path) for tensor in _tensors(file)):
        place = rename(tensor.key, names)
        if place in table:
            twice.append(tensor.key)
        table[place] = tensor
    return table, twice


def places(name: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
    """Where the tensors of a leaf go: ``(name, row)`` for every layer of a stacked one, else ``(name, None)``."""
    return [(name, row) for row in range(shape[0])] if trees.stacked(name) else [(name, None)]


def _survey(path: Path, model: models.Model) -> dict[tuple[str, int | None], Tensor]:
    """The catalogue, after the strict check: one error lists everything missing, misshapen, extra and doubled."""
    abstract, module = trees.flatten(model.abstract()), model.module
    table, twice = _catalogue(path, module.HF_NAMES)
    faults, owned = [f"{key} is there twice" for key in twice], set()
    for name, leaf in abstract.items():
        for place in places(name, leaf.shape):
            owned.add(place)
            shape = leaf.shape if place[1] is None else leaf.shape[1:]
            label = name if place[1] is None else f"{name}[{place[1]}]"
            if place not in table:
                faults.append(f"{label} is missing")
            elif table[place].shape != shape:
                faults.append(f"{table[place].key} has shape {table[place].shape}, expected {shape}")
    known = {rename(key, []) for key in module.unread(model.config)}
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


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "where"))
def _empty(shape, dtype, where):
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), where)


@functools.partial(jax.jit, static_argnames="where", donate_argnums=0)
def _fill(leaf, row, index, where):
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_update_index_in_dim(leaf, row, index, 0), where)


def _place(tensor: Tensor, dtype: Any, where: NamedSharding) -> jax.Array:
    """One tensor of a file on its devices, of which each reads its own slice."""
    read = {}

    def slices(index):
        key = str(index)  # replicas ask again for the same slice
        if key not in read:
            read[key] = np.array(tensor.map()[index]).astype(dtype, copy=False)
        return read[key]

    return jax.make_array_from_callback(tensor.shape, where, slices)


def load(path: Path, model: models.Model, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Tree:
    """Reads a checkpoint directory into the model's parameter tree, each device reading only its own slices.

    A stacked leaf is filled in place one layer after the other, so the host holds one tensor of one layer beside what is
    resident on the devices.

    Args:
      path: directory with config.json and safetensors, single file or sharded.
      model: ``models.Model(hf.read_config(path))``.
      mesh: where the params go, by the model's ``RULES``; default all on one device.
      dtype: of the params in memory; None keeps that of the files.
    Raises:
      InputError: a tensor is missing, extra or misshapen (all are listed), or a file is damaged.
    """
    mesh = mesh or sharding.make_mesh(1)
    table = _survey(path, model)
    abstract = model.abstract()

    def leaf(name, shape, where):
        sources = [table[place] for place in places(name, shape.shape)]
        kind = jnp.result_type(*(tensor.dtype for tensor in sources)) if dtype is None else np.dtype(dtype)
        if not trees.stacked(name):
            return _place(sources[0], kind, where)
        value = _empty(shape.shape, kind, where)
        of_row = NamedSharding(mesh, PartitionSpec(*where.spec[1:]))
        for index, tensor in enumerate(sources):
            value = jax.block_until_ready(_fill(value, _place(tensor, kind, of_row), index, where))
        return value

    placed = sharding.shardings(abstract, model.module.RULES, mesh)
    return trees.map_named(leaf, abstract, placed)


def _write(out: Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Fills a directory beside ``out`` and renames it into place, so that ``out`` is whole or not there."""
    out = pathlib.Path(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def rewrite(
    model: models.Model, source: Path, out: Path, change: Callable[[str, int | None, np.ndarray], Any]
) -> dict[str, int]:
    """A copy of the checkpoint directory ``source`` in which the tensors of the model's tree are changed in place.

    Names, dtypes, order and file boundaries stay, as do tensors we never read, the config, tokenizer and processor; weights
    in other formats are left behind. The host holds one tensor at a time. ``out`` appears only when it is complete.

    Args:
      change: ``(leaf name, row of the stacked leaf or None, tensor in the file) -> its new values``, or None to keep it.
    Returns:
      leaf name -> how many of its entries differ from the source's, in the dtype of the file.
    Raises:
      InputError: ``source`` does not fit the model, see :func:`load`.
    """
    abstract = trees.flatten(model.abstract())
    owned: dict[str, list] = {}
    for (name, row), tensor in _survey(source, model).items():
        if name in abstract and (row is None or row < abstract[name].shape[0]):
            owned.setdefault(tensor.file.name, []).append((name, row, tensor))

    changed: dict[str, int] = {}

    def fill(folder):
        for file in files(source):
            shutil.copyfile(file, folder / file.name)
            for name, row, tensor in owned.get(file.name, ()):
                value = change(name, row, tensor.map())
                if value is not None:
                    there = dataclasses.replace(tensor, file=folder / file.name).map("r+")
                    value = np.asarray(jax.device_get(value)).astype(tensor.dtype)
                    changed[name] = changed.get(name, 0) + int(np.count_nonzero(there != value))
                    there[...] = value
                    there.flush()
        for other in sorted(pathlib.Path(source).iterdir()):
            if other.is_file() and not other.name.removesuffix(".index.json").endswith(WEIGHTS):
                shutil.copyfile(other, folder / other.name)
        if (pathlib.Path(source) / INDEX).exists():
            shutil.copyfile(pathlib.Path(source) / INDEX, folder / INDEX)

    _write(out, fill)
    return changed


def save(params: Tree, model: models.Model, source: Path, out: Path) -> dict[str, int]:
    """Writes ``params`` as a copy of the checkpoint directory ``source``: ``save(load(x)) == x``, byte for byte.

    Returns and raises what :func:`rewrite` does; InputError too if ``params`` are not those of the model.
    """
    trees.check_like(params, model.abstract(), "the params to save")
    leaves = trees.flatten(params)
    return rewrite(model, source, out, lambda name, row, _: leaves[name] if row is None else leaves[name][row])


def create(params: Tree, model: models.Model, processor: Any, out: Path, seed: int = 0) -> None:
    """Writes a new checkpoint directory from nothing: config, processor, ``params`` and random unread tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in trees.flatten(params).items():
        value = np.asarray(jax.device_get(leaf))
        for place, row in places(name, value.shape):
            tensors[hub_name(place, row, model)] = value if row is None else np.ascontiguousarray(value[row])
    for name, shape in model.module.unread(model.config).items():
        place, row = rename(name, [])
        constant = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = 0.02 * rng.standard_normal(shape) if len(shape) > 1 else np.full(shape, constant)
        tensors[hub_name(place, row, model)] = noise.astype(np.float32)

    def fill(folder):
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_file(dict(sorted(tensors.items())), str(folder / SINGLE), metadata={"format": "pt"})

    _write(out, fill)


def hub_name(name: str, row: int | None, model: models.Model) -> str:
    """The name on the hub of a tensor of the tree; :func:`rename` undoes it."""
    key = name.replace("/", ".")
    if row is not None:
        key = re.sub(r"\.(layers|blocks)\.", rf".\1.{row}.", key, count=1)
    for pattern, replacement in model.module.HUB_NAMES:
        key = re.sub(pattern, replacement, key)
    return key
