"""The record of a deletion: what was forgotten of which model by what, and what was measured; sealed by its content."""

import dataclasses
import datetime
import hashlib
import hmac
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mmu_jax import InputError
from mmu_jax.data.people import Folder, Found
from mmu_jax.files import hashes, read_object, sealed, write_json
from mmu_jax.methods import METHODS
from mmu_jax.report.deletion import Check, Thresholds
from mmu_jax.report.results import placeless
from mmu_jax.study import records

NAME, PAGE, CARD, SUMS = "deletion.json", "deletion.html", "README.md", "SHA256SUMS"
PERSON = {"id": str, "photos": [str], "questions": str}
CHECK = {"name": str, "asked": {"*": str}}
SHAPE = {
    "format": float,
    "results": [CHECK],
    "people": [PERSON],
    "output": {"files": {"*": str}},
    "earlier": [{"results": [CHECK]}],
    "sha256": str,
    "met": bool,
}


def of_model(folder: pathlib.Path) -> dict[str, str]:
    """The same of a model: without what is told of it."""
    return {name: found for name, found in hashes(folder).items() if name not in (NAME, PAGE, CARD, SUMS)}


def source(said: str, given: pathlib.Path, start: pathlib.Path) -> dict[str, Any]:
    """What a record says of the model that was given: its id on the hub, or a name of its content, and its files.

    The name of a folder is somebody's own words, and may be a person's.

    Args:
      said: the model as it was named.
      given: its folder: a model, or an adapter of one.
      start: the folder of the model that was started from, its files are there as ``merged/`` where it is another.
    """
    files = of_model(given)
    if start.resolve() != given.resolve():
        files |= {f"merged/{name}": found for name, found in of_model(start).items()}
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return {"name": f"model-{content[:12]}" if pathlib.Path(said).exists() else said, "files": files}


def read(folder: pathlib.Path) -> dict[str, Any] | None:
    """The record beside a model, None where there is none.

    Raises:
      InputError: it is damaged, was altered, or is of other weights.
    """
    path = folder / NAME
    if not path.exists():
        return None
    record = read_object(path, "the record of a deletion", SHAPE)
    whole = [*record["earlier"], record]
    if any(sealed(one | {"earlier": whole[:i]})["sha256"] != one.get("sha256") for i, one in enumerate(whole)):
        raise InputError(f"expected the record {path} as it was written, found it altered; undo the edit")
    weights = {name: found for name, found in record["output"]["files"].items() if name.endswith(".safetensors")}
    there = {name: found for name, found in hashes(folder).items() if name in weights}
    if weights != there:
        raise InputError(
            f"expected the weights that {path} is of, found others beside it; copy the model again, or remove the record"
        )
    return record


def chain(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The records of all requests up to this one, the first one first, none with its own chain."""
    if record is None:
        return []
    return [*record["earlier"], {key: value for key, value in record.items() if key != "earlier"}]


def person(folder: Folder, found: Found) -> dict[str, Any]:
    """Who is to be forgotten: an id, and hashes by which the photos and the questions can be shown to be these.

    That of the questions is keyed by the photos: who does not have them cannot find out by guessing what was asked.
    """
    said = sorted((row.kind, row.question, row.answer) for row in folder.asked(found))
    return {"id": found.id, "photos": sorted(found.hashes), "questions": keyed(found, said)}


def keyed(found: Found, said: Sequence[Any]) -> str:
    """A hash of what is said of somebody, keyed by their photos."""
    key = hashlib.blake2b()
    for name in sorted(found.photos, key=dict(zip(found.photos, found.hashes, strict=True)).get):
        key.update((found.folder / name).read_bytes())
    return hmac.new(key.digest(), json.dumps(said).encode(), "sha256").hexdigest()


def earlier(folder: Folder, records_: Sequence[dict[str, Any]]) -> tuple[list[Found], list[str]]:
    """Of those forgotten before, who is in the folder by a photo of theirs, and the ids of who is not."""
    there, missing = [], []
    for gone in (gone for record in records_ for gone in record["people"]):
        photos = set(gone["photos"])
        found = [p for p in folder.people if photos & set(p.hashes)]
        there += found
        missing += [] if found else [gone["id"]]
    return list(dict.fromkeys(there)), missing


def make(
    *,
    people: Sequence[dict[str, Any]],
    source: dict[str, Any],
    output: dict[str, Any],
    method: str,
    config: dict[str, Any],
    thresholds: Thresholds,
    checks: Sequence[Check],
    level: dict[str, Any] | None,
    flags: Sequence[str],
    met: bool,
    before: Sequence[dict[str, Any]],
    not_tested: Sequence[str],
) -> dict[str, Any]:
    """The record of a request. It names nobody: people are ids, and places on this machine are left out.

    Args:
      source: what is said of the model that was given: ``files``, and ``name``.
      output: what is said of the model that came out: ``files``, and ``adapter``.
      before: the records of earlier requests, the first one first.
      not_tested: ids of those forgotten before who could not be asked again.
    """
    row = METHODS[method]
    return sealed(
        {
            "format": 1,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "people": list(people),
            "source": source,
            "output": output,
            "method": {"name": method, "source": row.source},
            "config": placeless(config),
            "provenance": records.provenance(),
            "thresholds": thresholds._asdict(),
            "people_never_seen": level,
            "results": json.loads(json.dumps([dataclasses.asdict(check) for check in checks])),
            "flags": list(flags),
            "met": met,
            "earlier": list(before),
            "not_tested_again": list(not_tested),
        }
    )


def write(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """The record, and a file of the hashes of all beside it that ``sha256sum -c`` reads."""
    write_json(folder / NAME, record)
    sums = {name: found for name, found in hashes(folder).items() if name != SUMS}
    (folder / SUMS).write_text("".join(f"{found}  {name}\n" for name, found in sums.items()), encoding="utf-8")
