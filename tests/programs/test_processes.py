"""Two processes with four devices each do what one does with eight: the same numbers, one log, one fault."""

import json
import os
import pathlib
import socket
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmu_jax.data import builders
from mmu_jax.data.sets import faces
from runs import ROOT, SMALL, command
from xla import QUICK

OPTIONS = [option for option in SMALL if "unlearn.methods" not in option]
OPTIONS += [
    "--config.mesh.data=8",
    "--config.gold=False",
    "--config.attack.names=('int4',)",
    "--config.vanilla.epochs=0.3",
    "--config.unlearn.methods=('projected','mmunlearner')",
    "--config.unlearn.rows=16",
    "--config.saliency.rows=16",
    "--config.factors.rows=16",
    "--config.factors.batches=2",
    "--config.evaluate.rows=64",
    "--config.evaluate.letters=False",
]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The embedded faces of a few people."""
    rows, forget = faces.rows, faces.forget_indices(0)
    others = [index for index in range(faces.PEOPLE) if index not in forget]
    people = {f"{index:04d}" for index in (*forget[:2], *others[:3], faces.PEOPLE, faces.PEOPLE + 1)}

    def kept(split, source):
        return [row for row in rows(split, source) if row["ID"] in people]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "rows", kept)
        return builders.prepare("embedded_faces", tmp_path_factory.mktemp("few"))


def start(workdir, devices, *options):
    """A process with so many devices."""
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(workdir, *OPTIONS, *options), cwd=ROOT, env=env, **pipes)


def together(workdir, *options):
    """Two processes of one run, and what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    both = [start(workdir, 4, address, "--processes=2", f"--process={i}", *options) for i in range(2)]
    return [(*process.communicate(timeout=600), process.returncode) for process in both]


def numbers(value, place=""):
    """Every number of a result by its place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {place: value} if isinstance(value, int | float) else {}
    return found | {k: v for key, item in items for k, v in numbers(item, f"{place}/{key}").items()}


def read(workdir, name):
    return numbers(json.loads((workdir / "results" / f"{name}.json").read_text())["results"])


def test_two_processes_end_in_the_results_of_one(few, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(one, 8, f"--config.data.path={few}")
    out, err = alone.communicate(timeout=600)
    assert alone.returncode == 0, err[-2000:]
    (first, faults, ended), (second, _, other) = together(two, f"--config.data.path={few}")
    assert (ended, other) == (0, 0), faults[-3000:]
    assert first.splitlines()[-1] == f"report: {two / 'report.html'}"
    assert not {*out.splitlines()} & {*second.splitlines()}  # the library by which CPUs talk may say something
    files = {path.relative_to(one) for path in one.rglob("*") if "compiled" not in path.parts}
    assert files == {path.relative_to(two) for path in two.rglob("*") if "compiled" not in path.parts}
    for name in ("vanilla", "projected", "mmunlearner"):
        expected, found = read(one, name), read(two, name)
        assert found.keys() == expected.keys() and len(found) > 100
        # Some stand in the file to five digits.
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=0, atol=1e-5 + 1e-9)
        folder = pathlib.Path("vanilla") if name == "vanilla" else pathlib.Path("unlearned") / name
        expected, found = (load_file(where / folder / "model.safetensors") for where in (one, two))
        for leaf, weight in expected.items():
            np.testing.assert_allclose(found[leaf], weight, rtol=0, atol=1e-5, err_msg=f"{name} {leaf}")


def test_a_fault_that_all_processes_find_is_told_once(few, tmp_path):
    for options in (["--config.data.forget=nobody"], ["--config.mesh.data=2"]):
        (_, first, ended), (_, second, other) = together(tmp_path / "w", f"--config.data.path={few}", *options)
        assert (ended, other) == (2, 2), first[-2000:]
        assert len([line for line in first.splitlines() if line.startswith("error: expected")]) == 1, first[-2000:]
        assert "error:" not in second
