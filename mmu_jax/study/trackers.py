"""Training curves, results and config of a study, sent to a tracker while it runs: numbers only.

Nobody's name, no question, no answer and no path leaves the machine: of the config only numbers, switches and names of tables are
sent, and the trackers that look at the machine or at what is printed are told not to.
"""

import importlib.util
import os
import pathlib
import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from mmu_jax import InputError, sharding
from mmu_jax.files import flat, read_object, write_json
from mmu_jax.metrics import METRICS

# Keys whose text is a name of a table of ours; any other text of a config is a user's own.
NAMED = r"data\.name|model\.(param_)?dtype|.*\.schedule|factors\.loss|evaluate\.headline|unlearn\.methods|attack\.names"
PROJECT = "mmu_jax"


class Told(NamedTuple):
    """What a tracker knows a run by: an id that stays with the workdir, a name, and the part of the config that is sent."""

    id: str
    name: str
    config: dict[str, Any]


class Writer(NamedTuple):
    """``write(group, values, step)``, and what ends it."""

    write: Callable[[str, dict[str, float], int], None]
    close: Callable[[], None]


def tensorboard(workdir: pathlib.Path, told: Told) -> Writer:
    """Event files in ``<workdir>/tracking/tensorboard``."""
    from tensorboardX import SummaryWriter

    own = f".{uuid.uuid4().hex[:6]}"  # else a run that goes on within a second writes over what it wrote
    writer = SummaryWriter(str(workdir / "tracking" / "tensorboard"), filename_suffix=own)
    writer.add_text("config", "\n".join(f"    {key} = {value!r}" for key, value in told.config.items()))

    def write(group, values, step):
        for name, value in values.items():
            writer.add_scalar(f"{group}/{name}", value, step)
        writer.flush()

    return Writer(write, writer.close)


def wandb(workdir: pathlib.Path, told: Told) -> Writer:
    """A run of Weights & Biases, in the project of ``WANDB_PROJECT`` or ``mmu_jax``; the same workdir goes on with its run.

    Raises:
      InputError: there is no account to send it to.
    """
    import wandb as package

    quiet = dict(console="off", disable_git=True, disable_code=True, save_code=False, x_save_requirements=False)
    quiet |= dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True)
    known = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "id": told.id,
        "name": told.name,
        "config": told.config,
    }
    (workdir / "tracking").mkdir(parents=True, exist_ok=True)  # else it writes elsewhere
    try:
        run = package.init(**known, dir=str(workdir / "tracking"), resume="allow", settings=package.Settings(**quiet))
    except package.Error as error:
        raise InputError(
            f"expected an account of Weights & Biases for config.track=wandb, found none that works ({error}); run wandb login, or set "
            "WANDB_MODE=offline"
        ) from error
    steps: set[str] = set()

    def write(group, values, step):
        if group not in steps:  # a stage counts for itself
            run.define_metric(f"{group}/step", hidden=True)
            run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            steps.add(group)
        run.log({f"{group}/{name}": value for name, value in values.items()} | {f"{group}/step": step})

    return Writer(write, run.finish)


def trackio(workdir: pathlib.Path, told: Told) -> Writer:
    """A run of trackio, in the project of ``TRACKIO_PROJECT`` or ``mmu_jax``; the same workdir goes on with its run."""
    import trackio as package

    silent = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = package.init(project=project, name=f"{told.name}-{told.id}", config=told.config, resume="allow", **silent)

    def write(group, values, step):
        run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    return Writer(write, run.finish)


# Name -> the package that it needs, and what opens it; the extra that brings it has its name.
TRACKERS = {"tensorboard": ("tensorboardX", tensorboard), "wandb": ("wandb", wandb), "trackio": ("trackio", trackio)}


def problems(kind: str) -> list[str]:
    """Whether the package of a tracker is there."""
    package = TRACKERS[kind][0] if kind else ""
    if not package or importlib.util.find_spec(package) is not None:
        return []
    return [
        f"expected the package {package} for config.track={kind}, found it not installed; run pip install 'mmu_jax[{kind}]', or leave "
        "config.track empty"
    ]


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that is sent, by dotted key: numbers, switches and names of our tables.

    >>> shared({"seed": 3, "data": {"name": "embedded_faces", "source": "/photos/of/ada"}})
    {'seed': 3, 'data.name': 'embedded_faces'}
    """

    def plain(value):
        return isinstance(value, int | float) or isinstance(value, tuple | list) and all(map(plain, value))

    return {key: value for key, value in flat(config).items() if plain(value) or re.fullmatch(NAMED, key)}


class Tracker:
    """What a study writes to; with no tracker in ``kind`` nothing is written.

    It is opened once, at the latest when something is written, and may be opened again after it was closed.
    """

    def __init__(self, kind: str, workdir: pathlib.Path, config: dict[str, Any]):
        self.kind, self.workdir, self.config = kind, workdir, config
        self._writer: Writer | None = None

    def open(self) -> None:
        """Begins or goes on, of several processes in the main one; InputError where the tracker will not."""
        if self.kind and self._writer is None and sharding.main():
            told = Told(
                self._id(), f"seed-{self.config['seed']}-group-{self.config['data']['group']}", shared(self.config)
            )
            self._writer = TRACKERS[self.kind][1](self.workdir, told)

    def _id(self) -> str:
        """By which the same workdir is known again."""
        path = self.workdir / "tracking" / "run.json"
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex[:12]})
        return read_object(path, "the id of a run (delete it, and it is made anew)", {"id": str})["id"]

    def write(self, group: str, values: dict[str, float], step: int) -> None:
        """Numbers of a stage at a step of its own."""
        self.open()
        if self._writer is not None and values:
            self._writer.write(group, {name: float(value) for name, value in values.items()}, step)

    def beside(
        self, stage: str, report: Callable[[int, dict[str, float]], None]
    ) -> Callable[[int, dict[str, float]], None]:
        """``report(step, values)`` that is written too."""

        def both(step, values):
            report(step, values)
            self.write(stage, values, step)

        return both

    def results(self, model: str, found: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> None:
        """The means of an evaluation, ``split -> task -> metric -> {mean, ...}``."""
        cells = {(s, t, m): cell for s, tasks in found.items() for t, of in tasks.items() for m, cell in of.items()}
        means = {"/".join(place): cell["mean"] for place, cell in cells.items() if place[-1] in METRICS}
        self.write(f"evaluate/{model}", means, 0)

    def close(self) -> None:
        """Ends it, so that nothing is lost."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
