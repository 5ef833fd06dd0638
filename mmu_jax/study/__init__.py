"""From a config and a workdir to unlearned checkpoints and a report: the only rooms that know what a config holds.

from mmu_jax.study import study
study.Study(config, "runs/mine").run()
"""
