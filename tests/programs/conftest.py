"""What several programs are tested on."""

import fcntl
import os

import pytest

from runs import SMALL, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A finished small run and what it said, made once for all the processes of the suite."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    workdir, said = root / "whole", root / "whole.txt"
    with open(root / "whole.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = run(workdir, *SMALL)
            assert done.returncode == 0, done.stderr[-3000:]
            said.write_text(done.stdout)
    return workdir, said.read_text()
