"""A study: a config judged, its stages in a workdir, and how they are run."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mmu_jax import report
from mmu_jax.models import attention
from mmu_jax.study import attacking, checks, records, settings, steps
from mmu_jax.study.stages import Stages
from mmu_jax.study.workspace import Workspace


class Study:
    """A config and a workdir.

        Study(config, "runs/mine").run()

    Attributes:
      work: what the stages share.
      stages: the stages, in the order in which they are made.
    """

    def __init__(self, config: ConfigDict, workdir: str | pathlib.Path, given: dict[str, Any] | None = None):
        """Judges the config; nothing is made yet.

        Args:
          config: a ``ConfigDict`` with the keys of ``mmu_jax.study.config.base``.
          given: the dotted keys that a user set by hand: one that nothing reads is refused.
        Raises:
          InputError: the config cannot work; all that is wrong is said at once.
        """
        given, config = given or {}, config.copy_and_resolve_references()
        settings.judge(config, given)
        config.lock()  # what was judged is what is made, whatever becomes of the caller's
        self.work = Workspace(config, pathlib.Path(workdir), given)
        self.stages = Stages(self.work.workdir, steps.stages(self.work), self.work.stopping)

    def run(self, only: Sequence[str] = ()) -> None:
        """Makes the stages that are not done, all or those named, once it is known that they can be made.

        A stage whose record matches is skipped; the same call resumes where it was stopped and ends in the same results, bit
        for bit.

        Raises:
          InputError: what a stage needs is not there, does not fit, or is not what it says it is.
          Stopped: SIGTERM came.
        """
        wanted = self.stages.wanted(list(only))
        for line in settings.unused(self.work.config, self.work.given):
            print(line, flush=True)
        if self.stages.done("data"):  # which says it when it is made, of the attacks that were asked for then
            for fault in attacking.left_out(self.work).values():
                print(f"  left out: {fault}", flush=True)
        for name in self.work.config.unlearn.methods:
            if self.stages.done(f"unlearn/{name}"):
                record = records.place(self.work.workdir, f"unlearn/{name}")
                for folder in self._exports(name):
                    if not folder.is_dir():
                        print(f"{folder} is gone: delete {record}, and it is made again", flush=True)
        with attention.kernels(self.work.config.mesh.kernels):
            checks.preflight(self.work, wanted)
            try:
                self.stages.run(list(only), self.work.tracker.open)
            finally:
                self.work.tracker.close()

    def _exports(self, name: str) -> list[pathlib.Path]:
        """The folders that a method left when it was done."""
        made = (self.stages.record(f"unlearn/{name}").get("result") or {}).get("adapter", {})
        return [self.work.folder(name)] + ([self.work.adapted(name)] if "rank" in made else [])

    def summary(self) -> str:
        """The four-way table and what follows from it."""
        return report.summary(self.work.workdir, self.work.names())
