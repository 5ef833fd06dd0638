"""Questions any model about people, prints every answer beside the right one, and the shares that are right.

    python -m experiments.evaluate --model=DIR --people=FOLDER [--who="Ada Berg"] [--out=FILE]
    python -m experiments.evaluate --model=DIR --data=mllmu_bench [--source=FOLDER] --who=forget_5

FOLDER is one of people (docs/deletion-request.md); --data one of the data sets, whose --source is a copy of it. --who are names, or
a split: they are told apart from the others. A line is: right or not, by face or by name, whose, the question, the answer, the truth.
"""

import pathlib
import tempfile

from absl import app, flags

from experiments import command
from mmu_jax import InputError, evaluate
from mmu_jax.data import Benchmark, builders, loader
from mmu_jax.files import write_json
from mmu_jax.metrics import METRICS
from mmu_jax.report.tables import interval

MODEL = flags.DEFINE_string("model", None, "The model: a Hugging Face directory, or an id on the hub.")
PEOPLE = flags.DEFINE_string("people", "", "A folder of people.")
DATA = flags.DEFINE_string("data", "folder", "The data set.")
SOURCE = flags.DEFINE_string("source", "", "A copy of the data set.")
WHO = flags.DEFINE_string("who", "", "Names, separated by commas, or a split; default everyone.")
OUT = flags.DEFINE_string("out", "", "Where results and answers are written too, as JSON.")
METRIC = flags.DEFINE_enum(
    "metric", "contains", [n for n, m in METRICS.items() if m.asks == "generation"], "What counts as right."
)
ROWS = flags.DEFINE_integer("rows", 32, "Rows of a batch.", 1)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 32, "The longest answer, in tokens.", 1)
SPLITS = {"forget": "", "test": " on new photos", "retain": ", the others", "retain_test": ", the others on new photos"}
SPLITS |= {"unseen": ", people never seen"}


def read(folder: pathlib.Path) -> Benchmark:
    """The people of the command line; prepared in ``folder``."""
    data = builders.prepare(DATA.value, folder, PEOPLE.value or SOURCE.value, "people" if PEOPLE.value else "source")
    return builders.read(data, forget=WHO.value or "full", retain=builders.REST)


def run() -> None:
    """Questions the model of the command line."""
    if not MODEL.value or DATA.value == "folder" and not PEOPLE.value:
        raise InputError("expected --model=DIR and --people=FOLDER, or --data and --source, found less; see --help")
    with tempfile.TemporaryDirectory() as folder:
        benchmark = read(pathlib.Path(folder))
    examiner, params = evaluate.of_checkpoint(MODEL.value, rows=ROWS.value, new_tokens=NEW_TOKENS.value, letters=False)
    people = {split: getattr(benchmark, split) for split in SPLITS if getattr(benchmark, split)}
    photos = {split: benchmark.full if split in ("forget", "retain") else found for split, found in people.items()}
    albums = {split: loader.album(examiner.processor, shown) for split, shown in photos.items()}
    found, answers = evaluate.evaluate(examiner, params, {s: (people[s], albums[s]) for s in people})
    names = {person.id: person.name for person in benchmark.shown}
    for split, tasks in answers.items():
        for task, rows in tasks.items():
            if rows:
                print(f"{'by face' if task == 'vqa' else 'by name'}{SPLITS[split]}")
            for row in rows:
                right = METRICS[METRIC.value].of(row["answer"], row["truth"]) >= METRICS[METRIC.value].right
                print(
                    f"  {'+' if right else '-'} {names[row['person']]}: {row['question']} {row['answer']!r} ({row['truth']!r})"
                )
    print()
    for split, tasks in found.items():
        for task, cells in tasks.items():
            shown = [
                f"{METRICS[m].title} {interval(cells[m], METRICS[m])} %"
                for m in (METRIC.value, "mcq", "probability")
                if m in cells
            ]
            if shown:
                print(
                    f"{'by face' if task == 'vqa' else 'by name'}{SPLITS[split]}: {'; '.join(shown)}; n {cells['distinct']['n']}"
                )
    if OUT.value:
        write_json(OUT.value, {"model": MODEL.value, "results": found, "answers": answers})


def main(argv: list[str]) -> None:
    del argv
    command.quiet()
    command.spoken(run)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_without_config)
