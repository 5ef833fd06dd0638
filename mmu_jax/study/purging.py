"""What a workdir holds of a person, taken out of it: photos, answers, models that still know, what was scored on them."""

import datetime
import mmap
import pathlib
import shutil
from typing import Any, NamedTuple

from mmu_jax import InputError, factor
from mmu_jax.data import builders
from mmu_jax.files import read_json, read_object, write_json
from mmu_jax.study.stages import alone

# What is left: models that never knew or that forgot, adapters to them, curves and programs. All else goes, whatever it is.
KEPT = (
    "base",
    "gold",
    "unlearned",
    "adapters",
    "training",
    "general",
    "compiled",
    "deletion.json",
    "purged.json",
    ".lock",
)
FACTORS = "factors.safetensors"
PIECE = 64  # bytes out of the middle of a photo by which it is looked for


class Purged(NamedTuple):
    """What was ``removed``, ``left``, and which files of what is left ``hold`` a name or a photo after all."""

    removed: list[str]
    left: list[str]
    hold: list[str]
    searched: int


def purge(workdir: str | pathlib.Path) -> Purged:
    """Removes from a workdir all that holds the people who were to be forgotten, and writes ``purged.json``.

    That is everything but what is listed in :data:`KEPT`, and the factors where none of them was measured; a model that was judged
    not to have forgotten goes too. Then what is left is searched for their names and photos, byte by byte.

    Raises:
      InputError: it is no workdir, or another run is at work there.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / "stages").is_dir() and not (workdir / "purged.json").exists():
        raise InputError(f"expected a workdir (with a folder stages), found none at {workdir}; name one")
    with alone(workdir):
        ids, needles = _people(workdir)
        kept = KEPT if _forgot(workdir) else tuple(name for name in KEPT if name not in ("unlearned", "adapters"))
        goes = [path for path in sorted(workdir.iterdir()) if path.name not in kept and not _harmless(path, ids)]
        removed = [file.relative_to(workdir).as_posix() for path in goes for file in _files(path)]
        for path in goes:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        left = [file for path in sorted(workdir.iterdir()) for file in _files(path)]
        hold = [file.relative_to(workdir).as_posix() for file in left if _holds(file, needles)]
        told: dict[str, Any] = {
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "people": sorted(ids),
        }
        write_json(workdir / "purged.json", told | {"removed": removed, "still_there": hold})
    return Purged(removed, [file.relative_to(workdir).as_posix() for file in left], hold, len(needles))


def _forgot(workdir: pathlib.Path) -> bool:
    """Whether the models in ``unlearned`` forgot, as far as a verdict was given."""
    path = workdir / "deletion.json"
    return not path.exists() or read_object(path, "the record of a deletion", {"met": bool})["met"]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _harmless(path: pathlib.Path, ids: set[str]) -> bool:
    """Whether it is a file of factors that were measured on others."""
    return path.name == FACTORS and bool(ids) and not ids & set(factor.people(path))


def _people(workdir: pathlib.Path) -> tuple[set[str], list[bytes]]:
    """The ids of the people to forget, and the bytes of their names and photos; none of either where the data is gone."""
    result = workdir / "results" / "vanilla.json"
    found = next(iter(workdir.glob("data/*/*/dataset_info.json")), None)
    if found is None or not result.exists():
        return set(), []
    data = read_json(result)["config"]["data"]
    benchmark = builders.read(found.parent, **{key: data[key] for key in ("forget", "retain", "group", "before")})
    gone = [p for p in benchmark.full if p.id in set(benchmark.forget_ids) | {one.id for one in benchmark.before}]
    photos = [photo for p in (*gone, *benchmark.test, *benchmark.before) for photo in p.photos]
    middles = [photo[len(photo) // 2 :][:PIECE] for photo in photos]
    named = [p.name.encode() for p in gone]
    return {p.id for p in gone}, list(dict.fromkeys(named + middles))


def _holds(file: pathlib.Path, needles: list[bytes]) -> bool:
    if not file.stat().st_size:
        return False
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(needle) >= 0 for needle in needles)
