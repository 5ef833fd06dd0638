"""A table of questions as people type it: every line that can be read, and what is wrong with the others, by file and line."""

import csv
import io
import json
import pathlib
import re
from collections.abc import Iterator

from mmu_jax.data import cells

NEEDED = ("person", "question", "answer")  # columns


def of_json(text: str, file: pathlib.Path, faults: list[str]) -> Iterator[tuple[int, dict]]:
    """Line and object of every line of JSON; a blank one is none."""
    for line, said in enumerate(text.split("\n"), 1):  # no other end of a line: an answer may hold U+2028
        if not said.strip():
            continue
        try:
            value = json.loads(said)
        except (ValueError, RecursionError) as error:
            faults.append(f"{file}:{line}: expected a JSON object, found none that can be read ({error}); correct it")
            continue
        if isinstance(value, dict):
            yield line, value
        else:
            faults.append(f"{file}:{line}: expected a JSON object, found {cells.brief(value)}; correct it")


def of_csv(text: str, file: pathlib.Path, faults: list[str]) -> Iterator[tuple[int, dict]]:
    """Line and filled cells by column of every row of CSV, whatever stands between its cells; blank lines above it are none."""
    above = len(text) - len(text.lstrip("\n"))
    head, _, rest = text[above:].partition("\n")
    said = re.match(r'"?sep=(.)', head, re.IGNORECASE)  # a spreadsheet's own word for the delimiter
    above, table = (above + 1, rest) if said else (above, text[above:])
    delimiter = said[1] if said else max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(table), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().casefold() for name in reader.fieldnames or ()]
        twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
        missing = [name for name in NEEDED if name not in columns]
        if missing or twice:
            found = f"{', '.join(twice)} twice" if twice else f"no {', '.join(missing)}"
            faults.append(
                f"{file}:{above + 1}: expected columns {', '.join(NEEDED)}, found {found}; name each once there"
            )
            return
        for row in reader:
            where = f"{file}:{above + reader.line_num}"
            if row.get(None):
                faults.append(f"{where}: expected {len(columns)} cells, found more; put quotes around commas")
            elif nameless := [value for name, value in row.items() if value and not name.strip()]:
                faults.append(
                    f"{where}: expected a name over every column, found none over {nameless[0]!r}; name it in line {above + 1}"
                )
            elif any(row.values()):
                yield above + reader.line_num, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        faults.append(f"{file}:{above + max(reader.line_num, 1)}: expected CSV, found that {error}; correct it")
