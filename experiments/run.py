"""From a checkpoint and a benchmark to unlearned checkpoints and a report one can trust.

    python -m experiments.run --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...] [--stages=a,b]

Stages: data -> base -> vanilla -> evaluate/vanilla -> gold -> saliency/<method> -> factors -> unlearn/<method> ->
evaluate/<model> -> general/<model>/<benchmark> -> attack/<model>/<attack> -> report. A stage whose record in
``<workdir>/stages`` matches is skipped; one that was made with another config is refused before anything is written. The same
command resumes where it was killed and ends in the same results, bit for bit.
"""

from absl import app, flags

from experiments import command
from mmu_jax.study.study import Study

STAGES = flags.DEFINE_list("stages", [], "Only these stages, by name or by their part before the slash.")


def run() -> None:
    """The study of the command line, and what it found."""
    workdir, stages = command.workdir(), STAGES.value
    study = Study(command.CONFIG.value, workdir, command.given())
    study.run(stages)
    if not stages or "report" in stages:
        print(study.summary())
        print(f"report: {workdir / 'report.html'}")


def main(argv: list[str]) -> None:
    del argv
    command.quiet()
    command.spoken(run)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
