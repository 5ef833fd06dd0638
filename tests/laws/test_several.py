"""Several processes: how they are found, and the words by which they agree, where there is one. Two run in programs/test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import processes
from mmu_jax import InputError, sharding

SLICE = {"TPU_ML_PLATFORM": "JAX"}  # JAX sets it where there are chips
ENVIRONMENTS = {
    "nothing": ({}, False),
    "a SLURM step of sixteen tasks": ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}, True),
    "a SLURM step of one task": ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, False),
    "a SLURM job without a step": ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, False),
    "a slice in GKE": (SLICE | {"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a,a-2.a,a-3.a"}, True),
    "one host in GKE": (SLICE | {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    "slices of one host in GKE": (SLICE | {"TPU_WORKER_HOSTNAMES": "a-0.a", "MEGASCALE_NUM_SLICES": "2"}, True),
    "a TPU VM, whose metadata names its slice": (SLICE, True),
    "a notebook's TPU": (SLICE | {"TPU_SKIP_MDS_QUERY": "1"}, False),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_several_processes_are_seen_in_their_environment(name):
    env, several = ENVIRONMENTS[name]
    assert processes.several(env) == several


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a:1", None, None), "found no --processes, --process"),
        ((None, 2, 0), "found no --coordinator"),
        (("a:1", 2, 2), "from 0 to 1, found 2"),
    ],
)
def test_flags_that_name_no_process_are_refused(given, said):
    with pytest.raises(InputError, match=said), processes.joined(*given):
        raise AssertionError("joined")


@pytest.mark.parametrize("given", [(None, None, None), ("nowhere:1", 1, 0)])
def test_one_process_joins_nothing(given, monkeypatch):
    monkeypatch.setattr("os.environ", {})
    with processes.joined(*given):
        assert not jax.distributed.is_initialized()


def test_the_host_has_all_of_an_array_that_lies_on_devices():
    mesh, rows = sharding.make_mesh(8), np.arange(16, dtype=np.float32).reshape(8, 2)
    placed = sharding.place(rows, NamedSharding(mesh, PartitionSpec("data")))
    assert len(placed.sharding.device_set) == 8
    np.testing.assert_array_equal(sharding.host(placed), rows)
    np.testing.assert_array_equal(sharding.host(sharding.put({"x": rows}, mesh)["x"]), rows)


def test_one_process_is_the_main_one_and_agrees_with_itself():
    def fails():
        raise InputError("this")

    assert sharding.main() and sharding.agreed({"due": True}) == {"due": True}
    assert sharding.first(lambda: [1, None]) == [1, None]
    with pytest.raises(InputError, match="this"):
        sharding.first(fails)
    sharding.barrier("alone")


def test_of_an_array_made_row_by_row_only_what_is_read_is_made():
    made = []

    def fill(target, row):
        made.append(row)
        target[:] = row

    mesh = sharding.make_mesh(4)
    placed = jax.make_array_from_callback(
        (8, 2), NamedSharding(mesh, PartitionSpec("data")), sharding.Rows((8, 2), fill).__getitem__
    )
    assert made == [*range(8)] and np.asarray(placed)[:, 1].tolist() == [*range(8)]
    assert sharding.Rows((8, 2), fill)[2:4, 1:].tolist() == [[2.0], [3.0]] and made[8:] == [2, 3]
