"""What a workdir holds of a person, taken out of it: photos, answers, models that still know, what was scored on them."""

import datetime
import json
import mmap
import pathlib
import shutil
import unicodedata
from typing import Any, NamedTuple

from mmu_jax import InputError, factor
from mmu_jax.data import builders
from mmu_jax.files import read_json, read_object, write_json
from mmu_jax.study.stages import alone

# What goes, of what a study writes: all but a model that never knew, one that forgot, curves, programs and the record.
GOES = (
    "answers",
    "attacks",
    "checkpoints",
    "data",
    "figures",
    "masks",
    "report.html",
    "report.md",
    "results",
    "stages",
)
GOES += ("tracking", "vanilla")
MODELS, FACTORS = ("adapters", "unlearned"), "factors.safetensors"
LEAST = 6  # letters of a name that is looked for among numbers: a shorter one stands in any weights
NUMBERS = (".safetensors", "-cache")
PURGED = {"people": [str], "removed": [str]}
PIECE = 64  # bytes out of the middle of a photo by which it is looked for


class Purged(NamedTuple):
    """What was ``removed``, ``left``, and which files of what is left ``hold`` a name or a photo after all."""

    removed: list[str]
    left: list[str]
    hold: list[str]
    searched: int


def purge(workdir: str | pathlib.Path) -> Purged:
    """Removes from a workdir all that holds the people who were to be forgotten, and writes ``purged.json``.

    That is what is listed in :data:`GOES`, models that no verdict says have forgotten, and factors that one of them was measured
    for; nothing else, whatever lies there. Then all that is left is searched for their names and photos, byte by byte.

    Raises:
      InputError: it is no workdir, or another run is at work there.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / "stages").is_dir() and not (workdir / "purged.json").exists():
        raise InputError(f"expected a workdir (with a folder stages), found none at {workdir}; name one")
    with alone(workdir):
        path = workdir / "purged.json"
        before = read_object(path, "what was purged before", PURGED) if path.exists() else {"people": [], "removed": []}
        ids, looked_for = _people(workdir)
        ids |= set(before["people"])
        wanted = GOES if _forgot(workdir) else (*GOES, *MODELS)
        goes = [path for path in sorted(workdir.iterdir()) if path.name in wanted or _measured_on(path, ids)]
        removed = [file.relative_to(workdir).as_posix() for path in goes for file in _files(path)]
        for path in goes:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        left = [file for path in sorted(workdir.iterdir()) for file in _files(path)]
        hold = [file.relative_to(workdir).as_posix() for file in left if _holds(file, looked_for)]
        told: dict[str, Any] = {"made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        told |= {"people": sorted(ids), "removed": [*before["removed"], *removed], "still_there": hold}
        write_json(workdir / "purged.json", told)
    return Purged(removed, [file.relative_to(workdir).as_posix() for file in left], hold, len(looked_for))


def _forgot(workdir: pathlib.Path) -> bool:
    """Whether a verdict says that the models in ``unlearned`` forgot: one that nobody judged may still know."""
    path = workdir / "deletion.json"
    return path.exists() and read_object(path, "the record of a deletion", {"met": bool})["met"]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _measured_on(path: pathlib.Path, ids: set[str]) -> bool:
    """Whether it is a file of factors that show what one of these people is."""
    return path.name == FACTORS and bool(ids & set(factor.people(path)))


def _people(workdir: pathlib.Path) -> tuple[set[str], list[tuple[bytes, bool]]]:
    """The ids of the people to forget, and what is looked for: bytes of their names and photos, and whether among numbers too.

    None of either where the data is gone.
    """
    found = next(iter(workdir.glob("data/*/*/dataset_info.json")), None)
    record, result = (workdir / "stages" / "data.json", workdir / "results" / "vanilla.json")
    if found is None or not record.exists():
        return set(), []
    data = read_object(record, "the record of a stage", {"reads": {"data": {"forget": str, "retain": str}}})["reads"][
        "data"
    ]
    group = read_json(result)["config"]["data"].get("group", 0) if result.exists() else 0
    chosen = {"forget": data["forget"], "retain": data["retain"], "before": data.get("before", ""), "group": group}
    benchmark = builders.read(found.parent, **chosen)
    ids = {person.id for person in (*benchmark.forget, *benchmark.before)}
    gone = [person for person in (*benchmark.full, *benchmark.test, *benchmark.before) if person.id in ids]
    middles = [photo[len(photo) // 2 :][:PIECE] for person in gone for photo in person.photos]
    looked_for = [(spelled, len(person.name) >= LEAST) for person in gone for spelled in _spellings(person.name)]
    return ids, list(dict.fromkeys([*looked_for, *((middle, True) for middle in middles)]))


def _spellings(name: str) -> set[bytes]:
    """A name as files have it: composed or not, as it is or as JSON escapes it."""
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} | {name}
    return {form.encode() for form in forms} | {json.dumps(form)[1:-1].encode() for form in forms}


def _holds(file: pathlib.Path, looked_for: list[tuple[bytes, bool]]) -> bool:
    if not file.stat().st_size:
        return False
    numbers = file.name.endswith(NUMBERS)
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(wanted) >= 0 for wanted, anywhere in looked_for if anywhere or not numbers)
