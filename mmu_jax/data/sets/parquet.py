"""Published benchmarks as they lie on the Hugging Face hub: a folder of Parquet files for every config."""

import pathlib
import re
from collections.abc import Iterator

from mmu_jax import InputError


def configs(source: pathlib.Path) -> set[str]:
    """Names of the folders that hold Parquet files."""
    return {path.parent.relative_to(source).parts[0] for path in source.glob("*/**/*.parquet")} | {
        path.parent.name for path in source.glob("*/*.parquet")
    }


def read(
    source: pathlib.Path, config: str, columns: tuple[str, ...], optional: tuple[str, ...] = (), split: str = ""
) -> Iterator[dict]:
    """The rows of a config, as Python values, a few at a time: ``columns``, and those of ``optional`` that are there.

    ``split``: how the names of the files that are read begin.

    Raises:
      InputError: there is no such folder, it lacks a file or one of ``columns``, or a file cannot be read.
    """
    for path in _files(source, config, split):
        yield from _rows(path, columns, optional)


def stamp(source: pathlib.Path, config: str) -> tuple:
    """What changes when the files of a config do."""
    stats = [(path.name, path.stat()) for path in _files(source, config)]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _files(source: pathlib.Path, config: str, split: str = "") -> list[pathlib.Path]:
    found = sorted((source / config).rglob(f"{split}*.parquet"))
    files = [path for path in found if not path.is_dir() and not path.name.startswith(".")]
    if not files:
        raise InputError(
            f"expected Parquet files in {source / config}, found none; download the whole data set there "
            f"(it has {', '.join(sorted(configs(source))) or 'no folder with Parquet files'})"
        )
    promised = max((int(said[1]) for path in files if (said := re.search(r"-of-0*(\d+)", path.stem))), default=1)
    if len(files) < promised:
        raise InputError(
            f"expected {promised} Parquet files in {source / config}, as {files[0].name} says, found {len(files)}; "
            "download the whole data set there"
        )
    return files


def _rows(path: pathlib.Path, columns: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What is wrong with a file shows when it is opened or only when a part of it is read.
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if missing := [name for name in columns if name not in there]:
                raise InputError(
                    f"expected columns {', '.join(columns)} in {path}, found no {', '.join(missing)}; "
                    "download the data set again"
                )
            wanted = [*columns, *(name for name in optional if name in there)]
            for part in file.iter_batches(batch_size=32, columns=wanted):
                yield from part.to_pylist()
    except InputError:  # a ValueError too
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two of times Python has not
        why = f"it cannot be read ({' '.join(str(error).split())[:200]}); download it again"
        if is_pointer(path):
            why = "it is a pointer of git-lfs; run 'git lfs pull' there"
        raise InputError(f"expected a Parquet file at {path}, found that {why}") from error


def is_pointer(path: pathlib.Path) -> bool:
    """Whether git-lfs left the note in place of the file."""
    try:
        with path.open("rb") as file:
            return file.read(30).startswith(b"version https://git-lfs")
    except OSError:
        return False
