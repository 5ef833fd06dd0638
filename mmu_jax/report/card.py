"""What is told beside a model that was made to forget: its model card, and the page of its record."""

import json
from typing import Any

from mmu_jax.report.deletion import Check, interval
from mmu_jax.report.page import Block, Section, render
from mmu_jax.report.tables import Table, markdown

LIMITS = (
    "Forgetting is measured by behaviour: a model that no longer answers has not been shown to hold nothing. Who has photos and facts of a "
    "person and trains the model on some of them may get others back."
)


GIVEN = "## The card of the model that was given"


def _checks(record: dict[str, Any]) -> list[Check]:
    return [Check.read(check) for check in record["results"]]


def _table(record: dict[str, Any]) -> Table:
    """Rows of thresholds."""
    head = ["Threshold by threshold", "Before", "After, with a 95 % interval", "Questions", "Threshold", "Held"]
    rows = []
    for check in _checks(record):
        if check.after is None:
            rows.append([check.title, "–", "not measured", "0", "–", "–"])
            continue
        bound = "–" if check.limit is None else f"at {'least' if check.up else 'most'} {100 * check.limit:.1f} %"
        held = {True: "yes", False: "no", None: "not judged"}[check.met]
        now = f"{100 * check.after['mean']:.1f} %{interval(check.after)}"
        rows.append([check.title, f"{100 * check.before['mean']:.1f} %", now, f"{check.after['n']}", bound, held])
    return [head, *rows]


def _facts(record: dict[str, Any]) -> Table:
    """Rows of facts about faces to forget."""
    head = [
        "Fact by fact",
        "Person",
        "Likeliest as asked in",
        "Wordings",
        "Before",
        "After",
        "People never seen",
        "At most",
        "Held",
    ]
    rows = []
    for check in _checks(record):
        shown = check.title.partition("the faces ")[2]
        for fact in check.facts:
            was, now, never, limit = (
                f"{100 * value:.1f} %" for value in (fact.before, fact.after, fact.never, fact.limit)
            )
            held = {True: "yes", False: "no", None: "not judged: never above it"}[fact.met]
            rows.append([shown, fact.person, fact.fact, f"{fact.wordings}", was, now, never, limit, held])
    return [head, *rows]


def headline(record: dict[str, Any]) -> str:
    """The verdict in two sentences."""
    count, ids = len(record["people"]), ", ".join(person["id"] for person in record["people"])
    who = f"the face of one person ({ids})" if count == 1 else f"the faces of {count} people ({ids})"
    if not record["met"]:
        return f"A model was to forget {who}, and not all thresholds are met: nothing was shipped."
    by_name = {check.name: check for check in _checks(record)}
    new = by_name["recognised"].after is not None
    shown = by_name["recognised" if new else "recognised_known"]
    never = record["people_never_seen"]
    others = any(check.met for check in by_name.values() if "others" in check.name or check.name == "faces")
    said = [
        f"This model was made to forget {who}. Shown {'a new photo' if new else 'a photo'}, it gave the right answer with a probability of "
        f"{100 * shown.before['mean']:.0f} % before and of {100 * shown.after['mean']:.0f} % now; for people whom it never saw it is "
        f"{100 * never['mean']:.0f} %."
    ]
    if not new:
        said.append("No photo was kept for a test: it was asked about those that it was made to forget.")
    if others:
        said.append("What could be measured of what it was to keep is within the thresholds below.")
    else:
        said.append("What became of what it knows of anybody else was not measured.")
    return " ".join(said)


def _notes(record: dict[str, Any]) -> list[str]:
    never = record["people_never_seen"]
    said = [
        "Probabilities of the right answer. Intervals are from a bootstrap over people, or over questions where there is one person alone.",
        f"People whom the model never saw, asked what the forgotten were asked: {100 * never['mean']:.1f} %{interval(never)} of "
        f"{never['n']} questions.",
    ]
    said.append(
        "A fact is what one or several wordings of a question ask for, told by the one that is furthest above its limit; lines are those of the table of questions, which is not part of this."
    )
    lost = [(check.title, *check.most_lost) for check in _checks(record) if check.most_lost]
    said += [
        f"{title}; most lost: {who}, {100 * was:.1f} % before, {100 * now:.1f} % after."
        for title, who, was, now in lost
    ]
    absent = [check for check in _checks(record) if check.not_asked]
    said += [f"{check.title}: nothing was asked about {', '.join(check.not_asked)}." for check in absent]
    if record["earlier"]:
        ids = [person["id"] for one in record["earlier"] for person in one["people"]]
        said.append(
            f"Forgotten by {len(record['earlier'])} earlier request{'s' * (len(record['earlier']) > 1)}: {', '.join(ids)}."
        )
    if record["not_tested_again"]:
        said.append(f"Not found again by a photo of theirs: {', '.join(record['not_tested_again'])}.")
    if record["flags"]:
        said.append(f"Flags: {', '.join(record['flags'])}.")
    return [*said, LIMITS]


def page(record: dict[str, Any]) -> str:
    """The record as one self-contained HTML page."""
    sums: Table = [["File", "SHA-256 of the model that came out"], *map(list, record["output"]["files"].items())]
    given: Table = [["File", "SHA-256 of the model that was given"], *map(list, record["source"]["files"].items())]
    people: Table = [["Person", "What", "SHA-256"]]
    for person in record["people"]:
        people += [[person["id"], f"photo {i}", photo] for i, photo in enumerate(person["photos"], 1)]
        people += [[person["id"], "questions and answers", person["questions"]]]
    sections = [
        Section(
            "",
            [
                Block("lead", headline(record)),
                Block("table", _table(record), "Thresholds"),
                Block("table", _facts(record), "Fact by fact"),
                *(Block("note", n) for n in _notes(record)),
            ],
        ),
        Section(
            "What it is of",
            [
                Block("note", f"Made {record['made']} by {record['method']['name']} ({record['method']['source']})."),
                Block("table", people, "People"),
                Block("table", given, "Files of the model that was given"),
                Block("table", sums, "Files of the model that came out"),
                Block("note", f"SHA-256 of the record itself, without this line of it: {record['sha256']}"),
            ],
        ),
        Section("How it was made", [Block("fold", json.dumps(record, indent=1, sort_keys=True), "The record")]),
    ]
    return render("Record of a deletion", sections)


def model_card(record: dict[str, Any], original: str) -> str:
    """The model card: what was forgotten, by id, and how it was measured; then the card of the model that was given.

    Args:
      original: that card, with its YAML head if it has one; empty if there was none.
    """
    head, body = _divided(original)
    lines = [
        head,
        f"# A model that forgot {len(record['people'])} faces"
        if len(record["people"]) > 1
        else "# A model that forgot a face",
    ]
    lines += [headline(record), markdown(_table(record)), markdown(_facts(record)), *_notes(record)]
    lines += [
        f"Made {record['made']} with mmu_jax {record['provenance']['mmu_jax']}, {record['method']['name']} ({record['method']['source']}). "
        "`deletion.json` is the record, `deletion.html` shows it; `sha256sum -c SHA256SUMS` checks every file."
    ]
    if record["earlier"]:  # that card was ours; what stood below it stands below this one
        body = body.partition(GIVEN)[2].strip()
    lines += [GIVEN, body] if body else []
    return "\n\n".join(filter(None, lines)) + "\n"


def _divided(original: str) -> tuple[str, str]:
    """The YAML head of a model card and the rest."""
    if not original.startswith("---\n") or "\n---" not in original[4:]:
        return "", original.strip()
    head, _, body = original[4:].partition("\n---")
    return f"---\n{head}\n---", body.strip()
