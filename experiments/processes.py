"""Several processes, each with devices of its own, that are one run: found, joined, and heard as one."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping

import jax

from mmu_jax import InputError, Stopped, sharding

TOGETHER = 10  # seconds within which a fault of all processes is found by each
PATIENCE = 30  # seconds for which one that ends waits for the others to end too


def several(env: Mapping[str, str]) -> bool:
    """Whether this process is one of several, by what SLURM and TPU slices say in its environment.

    >>> several({"SLURM_STEP_NUM_TASKS": "16"}), several({"TPU_WORKER_HOSTNAMES": "localhost"}), several({})
    (True, False, False)
    """
    if "SLURM_STEP_NUM_TASKS" in env:
        return int(env["SLURM_STEP_NUM_TASKS"]) > 1
    workers = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))  # of GKE
    if workers is not None:
        return "," in workers or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
    # JAX sets the first where it finds chips and the second where it finds none: a TPU VM, whose metadata names its slice.
    return "TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Raises InputError unless all three are there and name a process, or none is."""
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    lacking = [name for name, value in given.items() if value is None]
    if lacking and len(lacking) < len(given):
        raise InputError(
            f"expected --coordinator, --processes and --process together, found no --{', --'.join(lacking)}; give all three, or none"
        )
    if not lacking and not 0 <= process < processes:
        raise InputError(f"expected --process from 0 to {processes - 1}, found {process}; number the processes from 0")


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
    """One of all processes from here on, before any device is used; the main one alone is heard, but for faults it did not find.

    Args:
      coordinator, processes, process: address of the first, how many there are, and which this is; None for what JAX finds.
    Raises:
      InputError: some are there and not all; or the processes do not reach one another.
    """
    _check(coordinator, processes, process)
    if not (several(os.environ) if coordinator is None else processes > 1):
        yield
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs alone
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is heard by the run itself
    address = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    try:
        jax.distributed.initialize(**address, shutdown_timeout_seconds=PATIENCE)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"expected processes that reach one another, found that they do not ({said}); correct --coordinator, or for "
            "this process alone give --coordinator=localhost:1 --processes=1 --process=0"
        ) from error
    with contextlib.ExitStack() as silent:
        if not sharding.main():
            logging.disable(logging.WARNING)
            silent.enter_context(contextlib.redirect_stdout(silent.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except InputError as error:
            everywhere = _all_end()
            if sharding.main():
                raise
            if everywhere:  # the main process says it
                sys.exit(2)
            raise InputError(f"process {jax.process_index()}: {error}") from error
        except Stopped:
            if sharding.main():
                raise
            sys.exit(143)  # the main process says it


def _all_end() -> bool:
    """Whether all processes come to this within some seconds: a fault that each of them finds is told once."""
    try:
        sharding.barrier("fault", TOGETHER)
    except jax.errors.JaxRuntimeError:
        return False
    return True
