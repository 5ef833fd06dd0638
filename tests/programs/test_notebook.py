"""The notebooks run top to bottom on eight devices, and are kept without what a run leaves in them."""

import importlib.metadata
import json
import os
import pathlib
import re
import sys
import types
import zipfile

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
STUDY, PHOTOS = "mmu_jax_colab_tpu", "your_own_photos"
BADGE = "https://colab.research.google.com/github/mmu-jax/mmu_jax/blob/main/"
# What the study needs and the library does not: nothing of it may be found before the cells that are the library's have run.
BEYOND = {
    "transformers",
    "tokenizers",
    "tensorflow_datasets",
    "ml_collections",
    "huggingface_hub",
    "skimage",
    "pyarrow",
}
HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BEYOND}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
SHOW = f"""
sys.meta_path.pop(0)
print({BEYOND} & sys.modules.keys() or "none of them")
"""


@pytest.fixture(params=[STUDY, PHOTOS])
def notebook(request):
    return read(request.param)


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(cell, kind="image/png"):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def ran(notebook, workdir):
    """Every cell by its id, once the notebook has run, small."""
    # No kernel of the machine's, only the one that comes with this interpreter's ipykernel.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.owns_km = True  # it ends with the notebook
    client.execute(env=os.environ | {"MMU_JAX_NOTEBOOK": "small", "MMU_JAX_WORKDIR": str(workdir)})
    return {cell.id: cell for cell in notebook.cells}


def shares(line):
    return [int(share) for share in re.findall(r"(\d+)%", line)]


def test_the_study_runs_top_to_bottom_and_its_library_needs_nothing_else(tmp_path):
    notebook, workdir = read(STUDY), tmp_path / "w"
    new = {name: nbformat.v4.new_code_cell(source, id=name) for name, source in (("hide", HIDE), ("show", SHOW))}
    ids = [cell.id for cell in notebook.cells]
    notebook.cells.insert(ids.index("study-about"), new["show"])
    notebook.cells.insert(ids.index("devices"), new["hide"])
    cells = ran(notebook, workdir)
    said = {name: printed(cell) for name, cell in cells.items() if cell.cell_type == "code"}
    assert said["install"] == "" and " on 8 x " in said["devices"] and said["show"] == "none of them\n"
    assert shares(said["vanilla"]) == [100, 100, 100]
    ways = {line[:14].strip(): shares(line) for line in said["compare"].splitlines()}
    assert list(ways) == ["no protection", "the mask", "a random mask", "projected"]
    assert all(four <= 13 for four, _, _ in ways.values())  # of eight jobs: all forget to the same degree
    assert all(ways["projected"][i] >= 98 > 96 > ways[other][i] for other in [*ways][:3] for i in (1, 2))
    moved = re.search(r"mask: moved ([\d,]+) of ([\d,]+) weights inside, 0 outside", said["proof"])
    assert 0 < int(moved[1].replace(",", "")) <= int(moved[2].replace(",", ""))
    along = re.findall(r"along the kept directions ([\d.]+)%", said["proof"])
    assert len(along) == 3 and all(float(share) < 0.01 for share in along)
    assert "plan:" in said["run"] and "forget mask" in said["run"] and "of directions kept out" in said["run"]
    assert "Forget VQA" in said["table"] and re.search(r"^projected ", said["table"], re.MULTILINE)
    assert [len(shown(cells[name])) for name in ("forget-figure", "figure", "faces", "layers")] == [1, 2, 1, 2]
    (told,) = shown(cells["figure"], "text/markdown")
    assert "After projected" in told and "|" not in told and "# " not in told
    assert said["checkpoint"].splitlines()[0] == str(workdir / "unlearned" / "projected")
    assert "  model.safetensors" in said["checkpoint"].splitlines()
    assert said["llava"].startswith("llava-hf/llava-1.5-7b-hf") and "  unlearn/projected" in said["llava"]


def test_a_folder_of_photos_becomes_a_record(tmp_path):
    cells = ran(read(PHOTOS), tmp_path / "w")
    said = {name: printed(cell) for name, cell in cells.items() if cell.cell_type == "code"}
    assert said["look"].splitlines()[0] == f"{tmp_path}/w/four is without fault" and len(said["look"].splitlines()) == 5
    assert "to forget: 1 of 4 people in the folder" in said["request"] and "method: projected" in said["request"]
    judged = [line for line in said["verdict"].splitlines() if " before, " in line]
    assert len(judged) == 7 and all(": met (" in line for line in judged)
    assert shown(cells["verdict"], "text/markdown")[0].startswith(
        "**Met.** This model was made to forget the face of one person"
    )
    assert [len(shown(cells[name])) for name in ("sheet", "ask")] == [1, 1]
    facts = [line.split("  →  ") for line in said["by-name"].splitlines()[1::2]]
    assert len(facts) == 4 and all(was.strip() == now for was, now in facts)
    assert "files of" in said["record"] and "forgotten: p-" in said["record"]
    assert "Record of a deletion" in shown(cells["page"], "text/html")[0]
    assert said["purge"].endswith("a name or a photo is still in: none of them\n")
    record = json.loads((tmp_path / "w" / "without-one" / "deletion.json").read_text())
    assert record["met"] and not (tmp_path / "w" / "without-one.work" / "answers").exists()


def test_a_folder_is_uploaded_where_colab_is(tmp_path, monkeypatch):
    """Colab stands in the modules of its kernels; it asks for a file and gives its name and content."""
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as archive:
        archive.writestr("mine/people/Ada Berg/1.jpg", b"")
        archive.writestr("mine/questions.csv", "person,question,answer")
    content, mounted = (tmp_path / "people.zip").read_bytes(), []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {"people.zip": content})
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    cell = next(cell for cell in read(PHOTOS).cells if cell.id == "upload")

    def place(said):
        names = {"FOLDER": said, "WORK": tmp_path}
        exec(cell.source, names)
        return names["FOLDER"]

    drive = "/content/drive/MyDrive/mine"
    assert place("upload") == "upload" and place(drive) == drive and mounted == []  # elsewhere nothing happens
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert place("upload") == str(tmp_path / "uploaded" / "mine") and mounted == []
    assert place(drive) == drive and mounted == ["/content/drive"]


def test_nothing_of_a_run_is_kept(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []
    assert all(not cell.metadata for cell in notebook.cells)


def test_every_badge_names_a_notebook_that_is_there():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(NOTEBOOKS.glob("*.ipynb"))]
    links = {
        page: re.findall(r"https://colab\.research\.google\.com/github/[^)\"\\\s]+", page.read_text()) for page in pages
    }
    assert all(
        link.startswith(BADGE) and (ROOT / link.removeprefix(BADGE)).is_file()
        for found in links.values()
        for link in found
    )
    for path in NOTEBOOKS.glob("*.ipynb"):  # each has a badge of its own, under its title
        assert links[path][0] == f"{BADGE}notebooks/{path.name}"
        assert json.loads(path.read_text())["metadata"]["colab"]["name"] == path.name


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
