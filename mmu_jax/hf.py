"""Hugging Face checkpoint directories in and out.

The parameter tree *is* the checkpoint: the same names, the same ``(out, in)`` shapes, layers stacked on axis 0. A
model's ``HF_NAMES`` turns any spelling on disk into the dotted name of its tree; ``layers.7.`` is row 7 of the leaf
under ``layers``. Loading is strict both ways. Saving rewrites the source directory: tensors we own are replaced, all
else is copied through, names, dtypes and file boundaries kept.
"""

import dataclasses
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
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmu_jax import InputError, models, sharding, trees

Tree = Any
Path = str | pathlib.Path
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
STACK = re.compile(r"\.(layers|blocks)\.(\d+)\.")
BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)$")  # in old files; constants, copied through


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: its file, its name there, shape and dtype name of safetensors."""

    file: pathlib.Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def _open(file: pathlib.Path):
    try:
        return safe_open(str(file), framework="np")
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(
            f"expected a complete safetensors file, found {file} which cannot be read ({error}); copy it again"
        ) from error


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
        processor = AutoProcessor.from_pretrained(path, backend="pil")
        template = processor.chat_template
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
    for file in files(path):
        with _open(file) as handle:
            for key in handle.keys():
                view = handle.get_slice(key)
                place = rename(key, names)
                if place in table:
                    twice.append(key)
                table[place] = Tensor(file, key, tuple(view.get_shape()), view.get_dtype())
    return table, twice


def _places(name: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
    return [(name, row) for row in range(shape[0])] if trees.stacked(name) else [(name, None)]


def _survey(path: Path, model: models.Model) -> dict[tuple[str, int | None], Tensor]:
    """The catalogue, after the strict check: one error lists everything missing, misshapen, extra and doubled."""
    abstract, module = trees.flatten(model.abstract()), model.module
    table, twice = _catalogue(path, module.HF_NAMES)
    faults, owned = [f"{key} is there twice" for key in twice], set()
    for name, leaf in abstract.items():
        for place in _places(name, leaf.shape):
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


def load(path: Path, model: models.Model, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Tree:
    """Reads a checkpoint directory into the model's parameter tree, each device reading only its own slices.

    Args:
      path: directory with config.json and safetensors, single file or sharded.
      model: ``models.Model(hf.read_config(path))``.
      mesh: where the params go, by the model's ``RULES``; default all on one device.
      dtype: of the params in memory.
    Raises:
      InputError: a tensor is missing, extra or misshapen (all are listed), or a file is damaged.
    """
    mesh = mesh or sharding.make_mesh(1)
    table = _survey(path, model)
    handles = {file: _open(file) for file in files(path)}
    abstract = model.abstract()

    def leaf(name, shape, where):
        sources = [table[place] for place in _places(name, shape.shape)]
        stacked = trees.stacked(name)
        cache = {}

        def read(index):
            key = str(index)  # replicas ask again for the same slice
            if key not in cache:
                views = [handles[t.file].get_slice(t.key) for t in (sources[index[0]] if stacked else sources)]
                rows = [np.asarray(v[tuple(index[1:] if stacked else index)]) for v in views]
                cache[key] = (np.stack(rows) if stacked else rows[0]).astype(dtype)
            return cache[key]

        return jax.make_array_from_callback(shape.shape, where, read)

    placed = sharding.shardings(abstract, model.module.RULES, mesh)
    return trees.map_named(leaf, abstract, placed)


def _write(out: Path, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Fills a directory beside ``out`` and renames it into place, so that ``out`` is whole or not there."""
    out = pathlib.Path(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return out


def save(params: Tree, model: models.Model, source: Path, out: Path) -> pathlib.Path:
    """Writes ``params`` as a copy of the checkpoint directory ``source``: ``save(load(x)) == x``, tensor for tensor.

    Tensors of the tree are replaced (in the dtype of the source), tensors we never read, the config, tokenizer and
    processor are copied; names and file boundaries stay. ``out`` appears only when it is complete.
    """
    table = _survey(source, model)
    leaves = trees.flatten(params)
    trees.check_like(params, model.abstract(), "the params to save")
    where = {tensor.key: place for place, tensor in table.items()}

    def fill(folder):
        for file in files(source):
            tensors = {}
            with _open(file) as handle:
                for key in handle.keys():
                    original = handle.get_tensor(key)
                    name, row = where[key]
                    if name in leaves and (row is None or row < leaves[name].shape[0]):
                        value = leaves[name] if row is None else leaves[name][row]
                        original = np.asarray(jax.device_get(value)).astype(original.dtype)
                    tensors[key] = original
                meta = handle.metadata() or {"format": "pt"}
            save_file(tensors, str(folder / file.name), metadata=meta)
        for other in sorted(pathlib.Path(source).iterdir()):
            if other.is_file() and other.suffix != ".safetensors":
                shutil.copy2(other, folder / other.name)

    return _write(out, fill)


def create(params: Tree, model: models.Model, processor: Any, out: Path, seed: int = 0) -> pathlib.Path:
    """Writes a new checkpoint directory from nothing: config, processor, ``params`` and random unread tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in trees.flatten(params).items():
        value = np.asarray(jax.device_get(leaf))
        for place, row in _places(name, value.shape):
            tensors[_hub(place, row, model)] = value if row is None else np.ascontiguousarray(value[row])
    for name, shape in model.module.unread(model.config).items():
        place, row = rename(name, [])
        constant = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = 0.02 * rng.standard_normal(shape) if len(shape) > 1 else np.full(shape, constant)
        tensors[_hub(place, row, model)] = noise.astype(np.float32)

    def fill(folder):
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_file(dict(sorted(tensors.items())), str(folder / SINGLE), metadata={"format": "pt"})

    return _write(out, fill)


def _hub(name: str, row: int | None, model: models.Model) -> str:
    key = name.replace("/", ".")
    if row is not None:
        key = re.sub(r"\.(layers|blocks)\.", rf".\1.{row}.", key, count=1)
    for pattern, replacement in model.module.HUB_NAMES:
        key = re.sub(pattern, replacement, key)
    return key
