"""From a deletion request to a model that forgot, with a record: one command.

    python -m experiments.forget --model=DIR --people=FOLDER --who="Ada Berg, Bo Lind" --out=DIR

FOLDER holds people/NAME/*.jpg and questions.jsonl (docs/deletion-request.md). Everything is looked through before a model is
read; then a plan, the work, and a verdict against thresholds: met, the model is moved to --out with deletion.json beside it;
not met, nothing is, and the exit code is 3. The same command resumes where it was stopped. What the work needs lies in
--workdir, by default <out>.work, which holds photos and answers: python -m experiments.purge --workdir=DIR removes them.
"""

import pathlib

from absl import app, flags

from experiments import command
from mmu_jax import InputError, hf, hub, models, trees
from mmu_jax.files import write_json
from mmu_jax.report.deletion import Thresholds
from mmu_jax.study import deletion, intent, request
from mmu_jax.study.study import Study

MODEL = flags.DEFINE_string("model", None, "The model: a Hugging Face directory, or an id on the hub.")
PEOPLE = flags.DEFINE_string("people", None, "The folder of people.")
WHO = flags.DEFINE_string("who", "", "Whom to forget: names, separated by commas.")
SHOW_PEOPLE = flags.DEFINE_bool("show_people", False, "Faces, names and answers in the report of the workdir.")
KEEP = flags.DEFINE_string("keep", "", "Whom to keep of the folder; default everyone else.")
OUT = flags.DEFINE_string("out", None, "Where the model that forgot shall be.")
BEFORE = flags.DEFINE_string(
    "before", "", "Who was forgotten by earlier requests, beside those whom the record tells by their photos."
)
VALIDATE = flags.DEFINE_bool("validate", False, "Only look the folder through.")
RECOGNISED = flags.DEFINE_float(
    "recognised", 10.0, "Points above people never seen that a forgotten face may be, at most.", 0, 100
)
FACES = flags.DEFINE_float("lost_faces", 5.0, "Points that the others' faces may lose, at most.", 0, 100)
FACTS = flags.DEFINE_float("lost_facts", 5.0, "Points that what is known by name may lose, at most.", 0, 100)
PUSH = flags.DEFINE_string(
    "push_to_hub", "", "ORG/NAME: where on the Hugging Face hub it is pushed to, private, if the thresholds are met."
)

SETTLED = {"data.source": "--people", "data.forget": "--who", "data.retain": "--keep", "data.before": "--before"}
SETTLED |= {"vanilla.path": "--model"}
SMALL = 10**8  # parameters below which a model is trained whole, by the recipe of the embedded default
ROOT = pathlib.Path(__file__).resolve().parent.parent
NOT_MET = 3


def recipe(model: str) -> str:
    """The config for a model of this family and size.

    Raises:
      InputError: there is no model there, or it is none of ours.
    """
    folder = hub.fetch(model, "model", patterns=hub.SMALL)
    config = hf.read_config(folder)
    if trees.size(models.Model(config).abstract()) < SMALL:
        return "tiny.py:benchmark=folder"
    return f"{'llava' if config.model_type == 'llava' else 'qwen2_vl'}.py:benchmark=folder"


def parse(argv: list[str]) -> list[str]:
    """Flags; who names no --config gets the recipe for the model."""
    if command.last(argv, "config") is None:
        model = command.last(argv, "model")
        named = command.spoken(recipe, model) if model else "tiny.py:benchmark=folder"
        argv = [argv[0], f"--config={ROOT / 'configs' / named}", *argv[1:]]
    return command.parse(argv)


def needed() -> None:
    """Raises InputError unless the flags that have no default are given."""
    flags_ = {"model": MODEL, "people": PEOPLE, "out": OUT}
    if missing := [
        f"--{name}" for name, flag in flags_.items() if not flag.value and not (name == "out" and VALIDATE.value)
    ]:
        raise InputError(f"expected {', '.join(missing)}, found none; see --help")


def run() -> int:
    """The request of the command line; the exit code."""
    needed()
    if command.SEEDS.present:
        raise InputError("expected flags that this program reads, found --seeds; set --config.seed")
    if brought := sorted(command.given().keys() & SETTLED.keys()):
        told = ", ".join(f"config.{key} ({SETTLED[key]})" for key in brought)
        raise InputError(f"expected the request in flags of its own, found {told}; set these")
    wanted = request.read(MODEL.value, PEOPLE.value, WHO.value, KEEP.value, BEFORE.value)
    config = command.CONFIG.value
    request.settle(wanted, config, show_people=SHOW_PEOPLE.value)
    print(*intent.plan(wanted, config), sep="\n", flush=True)
    if VALIDATE.value:
        print(*intent.held(wanted), sep="\n")
        print("the folder is without fault")
        return 0
    out = pathlib.Path(OUT.value)
    thresholds = Thresholds(RECOGNISED.value / 100, FACES.value / 100, FACTS.value / 100)
    if request.done(wanted, out, thresholds):
        print(f"{out} is what this request made: nothing is to be done")
        return push(out)
    workdir = pathlib.Path(command.WORKDIR.value or f"{out}.work")
    request.check_free(out)
    request.check_places(wanted, out, workdir)
    study = Study(config, workdir, command.given())
    study.run()
    outcome = request.judge(study, wanted, thresholds)
    write_json(workdir / deletion.NAME, outcome.record)
    print("", *outcome.lines, sep="\n")
    if not outcome.met:
        print(f"verdict: NOT met; nothing is at {out}, all of it is in {workdir}")
        return NOT_MET
    request.ship(study, outcome, out)
    measured = "" if outcome.whole else ", as far as it could be measured"
    flagged = f", but {', '.join(outcome.record['flags'])}" if outcome.record["flags"] else ""
    print(f"verdict: met{measured}{flagged}; the model and its record (deletion.json, deletion.html) are in {out}")
    print(f"photos and answers are still in {workdir}: python -m experiments.purge --workdir={workdir} removes them")
    return push(out)


def push(out: pathlib.Path) -> int:
    """Pushes what was shipped, where that was asked for; the exit code."""
    if PUSH.value:
        print(f"pushed to {hub.push(out, PUSH.value)}")
    return 0


if __name__ == "__main__":
    app.run(command.ending(run), flags_parser=parse)
