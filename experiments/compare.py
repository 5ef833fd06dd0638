"""Compares runs of ``experiments.run``: several seeds, groups, or methods, on one page.

    python -m experiments.compare RUN RUN ... [--out=DIR] [--against=METHOD]

RUN is a workdir. What goes to ``DIR``: ``compare.html``, one self-contained page with means over runs, paired differences to one
method, ranks, and the front of forgetting against keeping; the same as ``compare.md``; every number as ``compare.csv``; the tables
for a paper as ``compare.tex``, which needs the package booktabs. Runs of other data, another model, another headline metric
or other questions are refused.
"""

from absl import app, flags

from experiments import command
from mmu_jax.report import comparison

OUT = flags.DEFINE_string("out", "runs/compare", "Where the page and the tables go.")
AGAINST = flags.DEFINE_string(
    "against", "", "The method that the others are compared with; default the first projected or masked one."
)


def compare(workdirs: list[str]) -> None:
    """Writes the comparison of workdirs and prints what it says."""
    print(*comparison.write(workdirs, OUT.value, AGAINST.value), sep="\n")


def main(argv: list[str]) -> None:
    command.spoken(compare, argv[1:])


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_with_words)
