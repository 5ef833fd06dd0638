"""The files of a checkpoint directory in Hugging Face format: which hold its weights, and which a copy of it may carry."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mmu_jax import InputError
from mmu_jax.files import read_object

log = logging.getLogger(__name__)
Path = str | pathlib.Path
INDEX, SINGLE, ADAPTER = "model.safetensors.index.json", "model.safetensors", "adapter_config.json"
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
POINTER = b"version https://git-lfs"
# The unlearned copy of a directory must not carry the model that still knows, nor anyone's data, under whatever name: what
# is not here stays behind, and so does what is not as its name says.
TEXT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken|processor_config"
    r"|preprocessor_config|video_preprocessor_config|chat_template)\.json|chat_template\.jinja|vocab\.txt|merges\.txt"
    r"|((?i:README|LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([-_][A-Z0-9.]+)?)(\.(md|txt))?"
)
SENTENCEPIECE = re.compile(r"(tokenizer|spiece|sentencepiece|sentencepiece\.bpe)\.model")
TEMPLATES = "additional_chat_templates"
LARGEST = 64 * 2**20  # bytes; the largest published tokenizer.json has half of it


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


def tensors(file: pathlib.Path) -> list[Tensor]:
    """The tensors of a safetensors file; the library checks that header and length agree.

    Raises:
      InputError: it cannot be read, names a tensor twice, or holds a dtype in which no model is trained.
    """
    try:
        with safe_open(str(file), framework="np"):
            pass
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            pairs = json.loads(handle.read(size), object_pairs_hook=list)
    except (SafetensorError, OSError) as error:
        advice = "run 'git lfs pull' there: it is a pointer" if _begins(file, POINTER) else "copy it again"
        raise InputError(
            f"expected a complete safetensors file, found {file} which cannot be read ({error}); {advice}"
        ) from error
    header = {key: dict(at) for key, at in pairs if key != "__metadata__"}
    if len({key for key, _ in pairs}) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise InputError(f"expected every tensor once, found {twice} twice in {file}; save it again")
    odd = {key: at["dtype"] for key, at in header.items() if at["dtype"] not in DTYPES}
    if odd:
        key, dtype = next(iter(odd.items()))
        raise InputError(
            f"expected tensors of dtype {', '.join(DTYPES)} in {file}, found {len(odd)} others, {key} is {dtype}; give a "
            "checkpoint that is not quantised"
        )
    return [
        Tensor(file, key, tuple(at["shape"]), np.dtype(DTYPES[at["dtype"]]), 8 + size + at["data_offsets"][0])
        for key, at in header.items()
    ]


def _begins(file: pathlib.Path, start: bytes) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        return handle.read(len(start)) == start


def weights(path: Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint directory: the single one, as ``transformers`` does, else those of the index.

    Raises:
      InputError: there are none, an adapter lies beside them, or the index is damaged, leaves the folder, names two files
        alike or one that is not there.
    """
    path = pathlib.Path(path)
    whole = (path / SINGLE).is_file() or (path / INDEX).is_file()
    if (path / ADAPTER).exists():
        raise InputError(
            f"expected a model or an adapter, found {ADAPTER} beside a whole model in {path}, which changes what the model is: "
            f"transformers loads both; merge the adapter first, or move {ADAPTER} and its weights to a folder of their own"
            if whole
            else f"expected a whole model, found an adapter ({ADAPTER}) in {path}; merge it onto its base "
            "(adapters.merge), or give both, it as vanilla.path and the base as model.path"
        )
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        return _shards(path)
    raise InputError(
        f"expected {SINGLE} or {INDEX} in a checkpoint directory, found neither in {path}; give a directory saved by "
        "transformers in safetensors format"
    )


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    table = read_object(path / INDEX, "an index of weights").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"expected a weight_map from tensors to files, found none in {path / INDEX}; copy it again")
    names = sorted(set(table.values()))
    parts = [pathlib.PurePosixPath(name) for name in names]
    for name, part in zip(names, parts, strict=True):
        if part.is_absolute() or ".." in part.parts or "\\" in name or part.suffix != ".safetensors":
            raise InputError(
                f"expected safetensors files inside the folder, found {name!r} in {path / INDEX}; correct its weight_map"
            )
    if twice := sorted({part.name for part in parts if [other.name for other in parts].count(part.name) > 1}):
        raise InputError(
            f"expected shards with names of their own, found several called {twice[0]} in {path / INDEX}; rename them"
        )
    if missing := [name for name in names if not (path / name).is_file()]:
        raise InputError(
            f"expected {len(names)} shards named in {path / INDEX}, found {len(missing)} missing: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}; copy them again, or remove the index if the weights are elsewhere"
        )
    return [path / name for name in names]


def complete(path: Path) -> bool:
    """Whether the weights are here; config and processor alone are fetched first."""
    path = pathlib.Path(path)
    if (path / SINGLE).is_file() or not (path / INDEX).is_file():
        return (path / SINGLE).is_file()
    table = read_object(path / INDEX, "an index of weights").get("weight_map")
    return not isinstance(table, dict) or all((path / str(name)).is_file() for name in table.values())


def carried(path: Path) -> list[pathlib.Path]:
    """What a copy of the directory may carry beside its weights, as paths in it.

    Config, generation config, tokenizer, processor, chat templates and their folder, licence and README. Links within the
    folder are read as the files they stand for; a linked folder is not entered.

    Raises:
      InputError: as :func:`check_links`.
    """
    path = pathlib.Path(path)
    check_links(path)
    kept = _named(path)
    for file in kept:
        if not _honest(file):
            log.warning("%s is left behind: it does not hold what its name says", file)
    return [file.relative_to(path) for file in kept if _honest(file)]


def _named(path: pathlib.Path) -> list[pathlib.Path]:
    """The files whose names are those of what may be carried."""
    found = [file for file in sorted(path.iterdir()) if file.is_file()]
    kept = [file for file in found if TEXT.fullmatch(file.name) or SENTENCEPIECE.fullmatch(file.name)]
    if not (path / TEMPLATES).is_symlink():
        kept += [file for file in sorted((path / TEMPLATES).glob("*.jinja")) if file.is_file()]
    return kept


def check_links(path: Path) -> None:
    """Refuses a directory in which what a copy would carry is a link out of it, other than to a file of the hub's cache.

    Raises:
      InputError: some are; all are named.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(
            f"expected a checkpoint directory, found none at {path}; give the folder of one, or, of a finished stage, delete its "
            "record in stages/, and it is made again"
        )

    def at_home(file: pathlib.Path) -> bool:
        cache = file.parent.parent.name.startswith("models--") and file.parent.name == "blobs"
        return cache or file.is_relative_to(path.resolve())

    files = [*_named(path), *(file for file in [path / INDEX] if file.is_file())]
    if away := [file for file in files if not at_home(file.resolve())]:
        found = ", ".join(f"{file.name} -> {file.resolve()}" for file in away)
        raise InputError(
            f"expected the files of a checkpoint in its own folder, found links out of {path}: {found}; put copies in their "
            "place (cp -L), or remove what is not the checkpoint's"
        )


def _honest(file: pathlib.Path) -> bool:
    """Whether a file holds text, or a sentencepiece model, as its name says."""
    if file.stat().st_size > LARGEST:
        return False
    content = file.read_bytes()
    if SENTENCEPIECE.fullmatch(file.name):
        return content.startswith((b"\n", POINTER))  # its first field; no archive or tensor file begins so
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def write(out: Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Fills a directory beside ``out`` and renames it into place, so that ``out`` is whole or not there.

    Raises:
      InputError: the disk refuses.
    """
    out = pathlib.Path(out)
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            os.replace(out, old)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected room and permission to write {out}, found {error}; free or change it") from error
    shutil.rmtree(old, ignore_errors=True)


def move(made: Path, out: Path) -> None:
    """Moves a directory to ``out``, where nothing is; on another disk too it is whole there or not there.

    Raises:
      InputError: the disk refuses.
    """
    try:
        os.rename(made, out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise InputError(
                f"expected room and permission to write {out}, found {error}; free or change it"
            ) from error
        write(out, lambda folder: shutil.copytree(made, folder, dirs_exist_ok=True))
        shutil.rmtree(made)
