"""The notebook runs top to bottom on eight devices, and is kept without what a run leaves in it."""

import importlib.metadata
import os
import pathlib
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = ROOT / "notebooks" / "mmu_jax_colab_tpu.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=nbformat.NO_CONVERT)


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_runs_top_to_bottom_and_shows_what_it_says(notebook, tmp_path):
    # No kernel of the machine's, only the one that comes with this interpreter's ipykernel.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.owns_km = True  # it ends with the notebook
    workdir = tmp_path / "w"
    small = {"MMU_JAX_NOTEBOOK": "small", "MMU_JAX_WORKDIR": str(workdir)}
    client.execute(env=os.environ | small)
    cells = {cell.id: cell for cell in notebook.cells}
    said = {name: printed(cell) for name, cell in cells.items() if cell.cell_type == "code"}
    assert said["install"] == "" and " on 8 x " in said["devices"]
    known, kept = (
        re.fullmatch(r"recognised: (\d+)% to forget, (\d+)% to keep\n", said[n]) for n in ("train", "forget")
    )
    assert int(known[1]) == 100 and int(known[2]) == 100
    assert int(kept[1]) == 0 and int(kept[2]) >= 98
    moved = re.fullmatch(r"moved: ([\d,]+) of ([\d,]+) weights inside the mask, 0 outside\n", said["proof"])
    assert 0 < int(moved[1].replace(",", "")) <= int(moved[2].replace(",", ""))
    assert "plan:" in said["run"] and "forget mask" in said["run"]
    assert "Forget VQA" in said["table"] and re.search(r"^mmunlearner ", said["table"], re.MULTILINE)
    assert [pictures(cells[name]) for name in ("forget-figure", "figure", "layers")] == [1, 2, 2]
    assert said["checkpoint"].splitlines()[0] == str(workdir / "unlearned" / "mmunlearner")
    assert "  model.safetensors" in said["checkpoint"].splitlines()
    assert said["llava"].startswith("llava-hf/llava-1.5-7b-hf") and "  unlearn/mmunlearner" in said["llava"]


def test_nothing_of_a_run_is_kept(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []
    assert all(not cell.metadata for cell in notebook.cells)


class Shell:
    """Stands for IPython: keeps the commands of a cell instead of running them."""

    def __init__(self):
        self.commands = []

    def system(self, command):
        self.commands.append(command)

    def run_line_magic(self, magic, line):
        self.commands.append(f"%{magic} {line}")


def test_installing_leaves_the_machine_s_jax_as_it_is(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without = [d for d in importlib.metadata.distributions() if d.name != "mmu_jax"]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: without)
    shell = Shell()
    cell = next(cell for cell in notebook.cells if cell.id == "install")
    exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: shell})
    clone, enter, install = shell.commands
    assert clone.startswith("git clone ") and enter == "%cd mmu_jax"
    assert install == "%pip install --quiet --constraint constraints.txt .[run]"
    held = (tmp_path / "constraints.txt").read_text().splitlines()
    for name in ("jax", "jaxlib", "flax", "numpy"):
        assert f"{name}=={importlib.metadata.version(name)}" in held
    (tmp_path / "setup.py").touch()  # pip failed and the cell is run again, in the clone: only pip is
    shell.commands.clear()
    exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: shell})
    assert shell.commands == [install]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(importlib.metadata.PackageNotFoundError):  # what pip did not do is seen at once
        exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: shell})
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(len(re.findall(r"\bpip\b|\buv\b|\bconda\b", source)) for source in sources) == 1
