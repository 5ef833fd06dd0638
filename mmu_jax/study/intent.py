"""What a deletion request is going to do, in words, before any of it is done."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mmu_jax.data.people import Found, Row
from mmu_jax.data.sets import folder as rows
from mmu_jax.data.slices import STREAMS
from mmu_jax.methods import METHODS
from mmu_jax.study.request import Request

SHOWN = 5  # notes on a folder, of maybe hundreds


def plan(request: Request, config: ConfigDict) -> list[str]:
    """What is going to be done, in words, a line each."""
    method = METHODS[config.unlearn.methods[0]]
    kept = len(request.kept)
    ids = ", ".join(person.id for person in request.who)
    lines = [
        f"to forget: {len(request.who)} of {len(request.folder.people)} people in the folder ({ids})",
    ]
    held = sum(len(rows.held_out(request.folder, person)) for person in request.who)
    asked = sum(len(_kept(request, person)) for person in request.who)
    lines.append(
        f"kept for the test, of them: {_count(held, 'photo')} and {_count(asked, 'question')}, which nothing is trained on"
    )
    if request.before or request.not_tested:
        lines.append(
            f"forgotten before: {len(request.before)} who are tested again"
            + (
                f", {len(request.not_tested)} of whom no photo of then is in the folder ({', '.join(request.not_tested)})"
                if request.not_tested
                else ""
            )
        )
    others = f"{kept} others are in the folder: none of them is trained on" if kept else "nobody else is in the folder"
    if any(STREAMS[stream].kept for stream in method.streams):
        others = f"{kept} others are in the folder and trained on"
    elif any(STREAMS[stream].kept for stream in method.reads):
        others = f"{kept} others are in the folder and measured, none of them is trained on"
    lines.append(f"method: {config.unlearn.methods[0]}, {method.source}; {others}")
    if method.projects:
        measured = [f"{kept} of the folder"] * bool(kept) + ["people never seen"] * bool(config.factors.unseen)
        what = (config.factors.path if method.reads_factors else "") or f"{' and '.join(measured)}, and texts"
        lines.append(f"what is kept is measured once, before it forgets, on {what}")
    notes = rows.remarks(request.source)
    more = [f"note: and {len(notes) - SHOWN} more"] if len(notes) > SHOWN else []
    return [*lines, _end(request, config.unlearn.stop), *(f"note: {note}" for note in notes[:SHOWN]), *more]


def _end(request: Request, stop: ConfigDict) -> str:
    """Where it is to end, in words."""
    if not stop.every:
        return "all passes are made, whatever is still known (config.unlearn.stop.every is 0)"
    what = "no fact about them is likelier than" if stop.facts else "no more is known of them than"
    if stop.level:
        return f"it ends where {what} {stop.level:g} (config.unlearn.stop.level)"
    strangers = len(request.folder.strangers)
    whose = f"for {_count(strangers, 'stranger')} of the folder"
    return f"it ends where {what} {whose if strangers else 'for ten people who do not exist (the folder has no strangers/)'}"


def _kept(request: Request, person: Found) -> list[Row]:
    """What the test asks in words that are not taught: not on other photos the same."""
    taught, tested = rows.divided(request.folder, person)
    return [row for row in tested if row.where not in {one.where for one in taught}]


def held(request: Request) -> list[str]:
    """Which photos and rows of the table are kept for the test, of each person to forget, a line each."""
    told = []
    for person in request.who:
        photos = rows.held_out(request.folder, person)
        places = [row.where.rpartition(":")[::2] for row in _kept(request, person)]
        files = {file: _runs([int(line) for name, line in places if name == file]) for file, _ in places}
        asked_of = "; ".join(f"{file}, lines {lines}" for file, lines in files.items())
        told.append(
            f"kept for the test, of {person.id}: photos {', '.join(photos) or 'none'}; {asked_of or 'no question'}"
        )
    return told


def _runs(numbers: Sequence[int]) -> str:
    """Numbers as they are said, those that follow one another together.

    >>> _runs([3, 4, 5, 9])
    '3 to 5, 9'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
