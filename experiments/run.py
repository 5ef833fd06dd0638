"""From a checkpoint and a benchmark to unlearned checkpoints and a report one can trust.

    python -m experiments.run --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...] [--stages=a,b] [--seeds=0,1,2] [--show_people]

Stages: data -> base -> vanilla -> evaluate/vanilla -> gold -> saliency/<method> -> factors -> unlearn/<method> ->
evaluate/<model> -> general/<model>/<benchmark> -> attack/<model>/<attack> -> report. A stage whose record in
``<workdir>/stages`` matches is skipped; one that was made with another config is refused before anything is written. The same
command resumes where it was killed and ends in the same results, bit for bit.

On several machines it is started on each (docs/full-size.md): ``--coordinator=HOST:PORT --processes=N --process=I``, or on a TPU slice
and in a SLURM step nothing. With ``--seeds`` the whole is done once a seed, in ``<workdir>/seed-<seed>``, and ``<workdir>/compare.html`` compares them.
"""

import pathlib

from absl import app, flags

from experiments import command, processes
from mmu_jax import InputError, sharding
from mmu_jax.report import comparison
from mmu_jax.study import settings, stages
from mmu_jax.study.study import Study

STAGES = flags.DEFINE_list("stages", [], "Only these stages, by name or by their part before the slash.")
SHOW_PEOPLE = flags.DEFINE_bool(
    "show_people", None, "Faces, names and answers in the report, or none: config.show_people."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Of several processes the address of the first, host:port; on a TPU slice or in a SLURM step of several tasks JAX finds it.",
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0, with --coordinator.")


def run() -> None:
    """The study of the command line, or one a seed, and what was found; by all processes, where there are several."""
    with processes.joined(COORDINATOR.value, PROCESSES.value, PROCESS.value):
        _run()


def _run() -> None:
    if not command.SEEDS.present:
        ended(study(command.workdir()))
        return
    workdir, seeds = command.workdir(), command.seeds([])
    found = studies(workdir, seeds)
    with stages.keeping_compiled(workdir / "compiled"):  # seeds share their programs
        for seed, folder in zip(seeds, found, strict=True):
            print(f"seed {seed}", flush=True)
            ended(study(folder, seed))
    if told() and (written := sharding.first(lambda: comparison.write(found, workdir))):
        print(*written, sep="\n")


def told() -> bool:
    """Whether the report is among the stages."""
    return not STAGES.value or "report" in STAGES.value


def ended(study: Study) -> None:
    """A study, run, and what it found."""
    study.run(STAGES.value)
    if told():
        print(study.summary())
        print(f"report: {study.work.workdir / 'report.html'}")


def studies(workdir: pathlib.Path, seeds: list[int]) -> list[pathlib.Path]:
    """The workdir of each seed; InputError where ``--seeds`` names none, or the config names one too."""
    if not seeds:
        raise InputError("expected a seed at least, found none in --seeds; name one")
    if settings.matching(command.given(), [("seed", True, "")]):
        raise InputError("expected --seeds or --config.seed, found both; remove one")
    return [workdir / f"seed-{seed}" for seed in seeds]


def study(workdir: pathlib.Path, seed: int | None = None) -> Study:
    """The study of the command line, with another seed where one is named."""
    config, given = command.CONFIG.value.copy_and_resolve_references(), command.given()
    with config.unlocked():
        if seed is not None:
            config.seed = seed
        if SHOW_PEOPLE.value is not None:
            config.show_people = given["show_people"] = SHOW_PEOPLE.value
    return Study(config, workdir, given)


def main(argv: list[str]) -> None:
    del argv
    command.quiet()
    command.spoken(run)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
