"""From a config and a workdir to unlearned checkpoints and a report: the only rooms that know what a config holds.

Three lines, without a command line, in a checkout (``configs`` is no part of the package)::

    from configs import tiny
    from mmu_jax import study
    study.Study(tiny.get_config(), "runs/mine").run()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmu_jax.study.study import Study

__all__ = ["Study"]


def __getattr__(name: str) -> Any:
    if name == "Study":  # loaded when it is named, as the modules are
        from mmu_jax.study.study import Study

        return Study
    raise AttributeError(f"module 'mmu_jax.study' has no attribute {name!r}")
