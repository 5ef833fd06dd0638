"""Removes from a workdir all that holds the people who were to be forgotten, and lists it.

    python -m experiments.purge --workdir=DIR

What goes: photos, questions and answers, the prepared data set, checkpoints, masks and scores, results, reports, records of stages,
the model that still knows, and any that no verdict says has forgotten. What stays: a model that never knew, training curves,
deletion.json. Then what is left is searched for the names and the photos; exit code 3 if one is found. The folder of people
itself and the model that was given are not of the workdir, and are not touched. A disk may keep what was deleted until it is
written over.
"""

from absl import app

from experiments import command
from mmu_jax import InputError
from mmu_jax.study import purging

STILL_THERE = 3


def run() -> int:
    """Purges the workdir of the command line; the exit code."""
    if not command.WORKDIR.value:
        raise InputError("expected --workdir=DIR, found none; name the workdir")
    found = purging.purge(command.WORKDIR.value)
    print("removed:", *found.removed or ["nothing"], sep="\n  ")
    print("left:", *found.left, sep="\n  ")
    if found.hold:
        print("a name or a photo is still in:", *found.hold, sep="\n  ")
        return STILL_THERE
    print(f"searched {len(found.left)} files for {found.searched} names and photos: none is there" if found.searched else
          "searched for nothing: the data set, and with it who was to be forgotten, was gone already")  # fmt: skip
    return 0


if __name__ == "__main__":
    app.run(command.ending(run), flags_parser=lambda argv: command.parse_without_config(argv, reads=("workdir",)))
