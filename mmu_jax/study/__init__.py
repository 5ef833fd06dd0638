"""From a config and a workdir to unlearned checkpoints and a report: the only rooms that know what a config holds.

Three lines, without a command line::

    from configs import tiny
    from mmu_jax.study.study import Study
    Study(tiny.get_config(), "runs/mine").run()
"""
