"""A deletion request: people of a folder, a model that knows them, and the same model that does not."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmu_jax import Faults, InputError, directory, evaluate, hub
from mmu_jax.data import IMAGE, Choice, Person, builders, facts, loader, names, people
from mmu_jax.data.people import Folder, Found
from mmu_jax.data.sets import folder as rows
from mmu_jax.files import hashes, read_object
from mmu_jax.methods import METHODS
from mmu_jax.report import answers as answered
from mmu_jax.report import card, deletion, results
from mmu_jax.report.deletion import Check, Thresholds
from mmu_jax.report.forgotten import Asked, level
from mmu_jax.study import deletion as record
from mmu_jax.study.study import Study

ADAPTER = "adapter"  # where in the model's folder the PEFT adapter lies


@dataclasses.dataclass(frozen=True)
class Request:
    """Who is to be forgotten of which model.

    Attributes:
      model: its directory.
      source: the folder of people.
      who: the people to forget, ``before`` those of earlier requests who are in the folder.
      kept: ids of the people to keep; ``keep`` is how a config says it, ``builders.REST`` where they are everyone else.
      records: of the earlier requests, the first one first.
      not_tested: ids of people of earlier requests who are not in the folder.
      folder: all that was read.
    """

    model: pathlib.Path
    source: pathlib.Path
    who: tuple[Found, ...]
    before: tuple[Found, ...]
    kept: tuple[str, ...]
    keep: str
    records: tuple[dict[str, Any], ...]
    not_tested: tuple[str, ...]
    folder: Folder


def read(model: str, source: str, who: str, keep: str = "", before: str = "") -> Request:
    """The request, once its folder is without fault.

    Args:
      model: directory or hub id.
      source: folder of people (``mmu_jax.data.people``).
      who, keep: names or ids, separated by commas; ``keep`` is everyone else where it is empty.
      before: the same of people of earlier requests, beside those who are told by their photos.
    Raises:
      Faults: all that is wrong with the folder and with who is named.
      InputError: the record of earlier requests beside the model does not hold.
    """
    root = pathlib.Path(source)
    if faults := [
        *rows.faults(root, f"{who},{before}", keep),
        *([] if who.strip() else ["--who: expected a name, found none; name someone"]),
    ]:
        raise Faults(faults)
    found = people.read(root)
    known = {person.id: person.name for person in found.people}
    chosen = names.resolve(who, known)[0]
    place = hub.fetch(model, "model", patterns=hub.SMALL)
    if (place / record.NAME).exists():  # what it says is of the weights
        place = hub.fetch(model, "model")
    earlier = record.chain(record.read(place))
    told, missing = record.earlier(found, earlier)
    told_ids = {*(person.id for person in told), *names.resolve(before, known)[0]} - set(chosen)
    others = [id_ for id_ in names.resolve(keep, known)[0] or known if id_ not in told_ids | set(chosen)]
    if keep.strip() and not others:
        raise Faults(["--keep: expected people to keep, found none but those of earlier requests; name others"])
    asked, gone = (tuple(p for p in found.people if p.id in ids) for ids in (chosen, told_ids))
    said = ",".join(others) if keep.strip() else builders.REST
    return Request(pathlib.Path(model), root, asked, gone, tuple(others), said, tuple(earlier), tuple(missing), found)


def settle(request: Request, config: ConfigDict, show_people: bool = False) -> None:
    """Puts the request into a config, whose records name people by id alone.

    Args:
      show_people: whether the report of the workdir shows faces, names and answers.

    Raises:
      InputError: the config has not one method.
    """
    named = config.unlearn.methods
    if not isinstance(named, tuple | list) or len(named) != 1 or named[0] not in METHODS:
        raise InputError(
            f"expected one method of {', '.join(METHODS)} in config.unlearn.methods, found {named!r}; name the one to forget by, as in "
            "('projected',)"
        )
    with config.unlocked():
        config.vanilla.path = str(request.model)
        config.data.source = str(request.source)
        config.data.forget = ",".join(person.id for person in request.who)
        config.data.before = ",".join(person.id for person in request.before)
        config.data.retain = request.keep
        config.show_people = config.show_people or show_people


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a request: its ``record``, as it is written; ``lines`` for a terminal; whether it was ``met``, and all of it measured."""

    record: dict[str, Any]
    lines: tuple[str, ...]
    met: bool
    whole: bool


def judge(study: Study, request: Request, thresholds: Thresholds) -> Outcome:
    """The verdict on a study that was run, and its record.

    Raises:
      InputError: the model is no longer where it was made, or as it was.
    """
    work = study.work
    (method,) = work.config.unlearn.methods
    if not work.folder(method).is_dir():
        raise InputError(
            f"expected the model of this request in {work.folder(method)}, found that it was moved from there; name the --out it is at, or "
            "another --workdir to make it again"
        )
    study.stages.check_files(f"unlearn/{method}")  # what is sealed is what was evaluated
    found = results.read(work.workdir, work.names())
    checks: list[Check] = deletion.checks(found, method, thresholds, asked(study, request.folder), request.records)
    flags = found[method]["flags"]
    met = deletion.met(checks, flags)
    made = record.make(
        people=[record.person(request.folder, person) for person in request.who],
        source=record.source(str(request.model), hub.fetch(request.model, "model"), work.vanilla),
        output=_output(study, method),
        method=method,
        config=work.told_config,
        thresholds=thresholds,
        checks=checks,
        level=level(found),
        flags=flags,
        met=met,
        before=request.records,
        not_tested=request.not_tested,
    )
    whole = all(check.whole for check in checks)
    return Outcome(made, tuple(deletion.told(found, method, checks)), met, whole)


def asked(study: Study, folder: Folder) -> Asked:
    """What is asked, by photo and by name, and where in the table of the folder."""
    b, there = study.work.benchmark, {person.id: person for person in folder.people}
    where: dict[tuple[str, str, str], str] = {}
    for person in folder.people:
        for row in (row for row in folder.asked(person) if row.kind == IMAGE):
            where.setdefault((person.id, names.key(row.question), names.key(row.answer)), row.where)
    who = {"forget": b.forget, "test": b.forget, "before": b.before}
    of, same = {}, {}
    for split in ("forget", "test", "before", "retain", "retain_test", "unseen"):
        for task, kind in evaluate.TASKS.items():
            put = [(person, [item for item in person.choices if item.kind == kind]) for person in getattr(b, split)]
            if kind == IMAGE:
                of[split] = [facts.wording(item) for _, items in put for item in items]
            if split != "unseen":
                same[split, task] = {person.id: _hashed(there[person.id], person, items) for person, items in put}
    (method,) = study.work.config.unlearn.methods
    said = {split: _said(study, "vanilla" if split == "unseen" else method, split) for split in of}
    return Asked(of, where, {split: [person.id for person in people] for split, people in who.items()}, same, said)


def _said(study: Study, name: str, split: str) -> list[tuple[tuple[str, str, str], bool]]:
    """What a model answered in words by photo, and whether it is right by the metric of the headline."""
    right = answered.judge(study.work.config.evaluate.headline)
    every = read_object(study.work.workdir / "answers" / f"{name}.json", "answers").get(split, {}).get("vqa", [])
    return [
        ((one["person"], names.key(one["question"]), names.key(one["truth"])), bool(right(one["answer"], one["truth"])))
        for one in every
        if one["task"] == "generation"
    ]


def _hashed(found: Found, person: Person, items: Sequence[Choice]) -> str:
    """A hash of what is asked about somebody: of the photos too, where it is asked by photo."""
    shown = {people.digest(photo) for photo in person.photos} if any(item.kind == IMAGE for item in items) else set()
    return record.keyed(found, [*sorted(shown), *sorted("\n".join(facts.wording(item)[1:]) for item in items)])


def _output(study: Study, method: str) -> dict[str, Any]:
    """What is said of the model that came out: its files, those of the adapter, and what the adapter is or why there is none."""
    work = study.work
    files = record.of_model(work.folder(method))
    if (adapter := work.adapted(method)).is_dir():
        files |= {
            f"{ADAPTER}/{name}": found for name, found in hashes(adapter).items() if name.endswith(".safetensors")
        }
    made = (study.stages.record(f"unlearn/{method}").get("result") or {}).get("adapter")
    return {"files": files, "adapter": made or {"none": "the params themselves were trained"}}


def ship(study: Study, outcome: Outcome, out: pathlib.Path) -> None:
    """Moves the model that forgot to ``out``, with its record, the page of it, a model card and the hashes of all files.

    Raises:
      InputError: there is something at ``out``, or no room for it.
    """
    check_free(out)
    (method,) = study.work.config.unlearn.methods
    made = study.work.folder(method)
    if (adapter := study.work.adapted(method)).is_dir():
        shutil.rmtree(made / ADAPTER, ignore_errors=True)
        shutil.copytree(adapter, made / ADAPTER)
        for file in (
            made / ADAPTER / "README.md",
            made / ADAPTER / directory.ADAPTER,
        ):  # by name, not by a place on this machine
            file.write_text(
                file.read_text(encoding="utf-8").replace(study.work.vanilla_name, outcome.record["source"]["name"]),
                encoding="utf-8",
            )
    given = study.work.vanilla / record.CARD
    (made / record.CARD).write_text(
        card.model_card(outcome.record, given.read_text(encoding="utf-8") if given.exists() else ""), encoding="utf-8"
    )
    (made / record.PAGE).write_text(card.page(outcome.record), encoding="utf-8")
    record.write(made, outcome.record)
    out.parent.mkdir(parents=True, exist_ok=True)
    directory.move(made, out)


def check_free(out: pathlib.Path) -> None:
    """Raises InputError where there is something at ``out``."""
    if out.exists():
        raise InputError(f"expected nothing at {out}, found a file or a folder; name another --out, or remove it")


def check_places(request: Request, out: pathlib.Path, workdir: pathlib.Path) -> None:
    """Raises InputError where one place of a request lies in another: what is made or purged in one is not of the other."""
    places = {"--out": out, "--workdir": workdir, "--people": request.source, "--model": request.model}
    resolved = {flag: place.resolve() for flag, place in places.items()}
    for flag in ("--out", "--workdir"):
        for other, place in resolved.items():
            if other != flag and (resolved[flag].is_relative_to(place) or place.is_relative_to(resolved[flag])):
                raise InputError(
                    f"expected {flag} apart from {other}, found {places[flag]} and {places[other]}; name another place"
                )


def done(request: Request, out: pathlib.Path, thresholds: Thresholds) -> bool:
    """Whether ``out`` holds what this very request made: of the same people, out of the same weights, by the same thresholds."""
    if not (out / record.NAME).exists():
        return False
    made, people_now = record.read(out), [record.person(request.folder, person) for person in request.who]
    given = record.of_model(hub.fetch(request.model, "model"))
    return (
        made["people"] == people_now
        and given.items() <= made["source"]["files"].items()
        and made["thresholds"] == thresholds._asdict()
    )


def answers(
    model: str | pathlib.Path, questions: Sequence[str], photos: Sequence[str | pathlib.Path] = (), new_tokens: int = 64
) -> list[str]:
    """What a model answers to every question: about the first of the photos, then about the next, or about none.

    Args:
      model: directory or hub id: one that was given, or one that forgot.
      photos: files.
      new_tokens: of the longest answer.

    Raises:
      InputError: a photo is not there, or there is no model that is one of ours.
    """
    if missing := [str(path) for path in photos if not pathlib.Path(path).is_file()]:
        raise InputError(f"expected a photo, found no file at {', '.join(missing)}; correct it")
    asked = [*questions] * max(len(photos), 1)
    examiner, params = evaluate.of_checkpoint(model, rows=max(min(len(asked), 32), 1), new_tokens=new_tokens)
    if not photos:
        return examiner.answers(params, asked, None, None)
    shown = [Person(str(p), str(p), (pathlib.Path(p).read_bytes(),), (), (), (), ()) for p in photos]
    album = loader.album(examiner.processor, shown)
    return examiner.answers(params, asked, np.repeat(np.arange(len(photos)), len(questions)), album)
