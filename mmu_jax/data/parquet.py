"""Published benchmarks as they lie on the Hugging Face hub: a folder of Parquet files for every config."""

import pathlib
from collections.abc import Iterator

from mmu_jax import InputError


def configs(source: pathlib.Path) -> set[str]:
    """Names of the folders that hold Parquet files."""
    return {path.parent.relative_to(source).parts[0] for path in source.glob("*/**/*.parquet")} | {
        path.parent.name for path in source.glob("*/*.parquet")
    }


def read(source: pathlib.Path, config: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> Iterator[dict]:
    """The rows of a config, as Python values, a few at a time: ``columns``, and those of ``optional`` that are there.

    Raises:
      InputError: there is no such folder, or it lacks one of ``columns``.
    """
    import pyarrow.parquet as pq

    files = sorted((source / config).rglob("*.parquet"))
    if not files:
        raise InputError(
            f"expected Parquet files in {source / config}, found none; download the whole data set there "
            f"(it has {', '.join(sorted(configs(source))) or 'no folder with Parquet files'})"
        )
    for path in files:
        file = pq.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise InputError(
                f"expected columns {', '.join(columns)} in {path}, found no {', '.join(missing)}; download the data set again"
            )
        wanted = [*columns, *(name for name in optional if name in file.schema_arrow.names)]
        for part in file.iter_batches(batch_size=32, columns=wanted):
            yield from part.to_pylist()


def image(value: dict | bytes | None) -> bytes | None:
    """The encoded bytes of an image column."""
    return value["bytes"] if isinstance(value, dict) else value
