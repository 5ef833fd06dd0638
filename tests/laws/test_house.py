"""Law 13: imports run downward, rooms stay small, and each says only what it should know."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "mmu_jax"
# From the ground up; what stands together may not import one another, but for a package and its own rooms.
FLOORS = (
    ("mmu_jax",),
    ("letters", "losses", "files", "hub", "trees"),
    ("overlap", "quality", "sharding"),
    (
        "directory",
        "distillation",
        "factor",
        "metrics",
        "optimizers",
        "packing",
        "rowwise",
        "selection",
        "separable",
        "checkpoint",
    ),
    ("masks", "scored"),
    ("saliency",),
    ("curvature",),
    ("trainable", "transforms"),
    ("lora", "sine"),
    ("together",),
    ("rules",),
    ("data", "models"),
    ("activations", "clear_compat", "objectives", "questions"),
    ("edits",),
    ("phases",),
    ("methods",),
    ("hf", "memory", "plan"),
    ("generate", "likelihood", "train_state"),
    ("membership", "programs"),
    ("adapters", "evaluate", "report", "train"),
    ("attacks",),
    ("study",),
)
PLACE = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(path):
    """``mmu_jax/data/text.py`` -> ``data.text``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "mmu_jax"


ROOMS = {room(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def named(path):
    """The dotted names that a file imports or reaches for, at its head or in a function, but for what only a type checker reads."""
    tree = ast.parse(path.read_text())
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(n) for block in typed for n in ast.walk(block)}
    for node in (n for n in ast.walk(tree) if id(n) not in skipped):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"mmu_jax(\.\w+)+", whole := ast.unparse(node)):
            yield whole


def imports(path):
    """The rooms that a file imports or reaches for."""
    found = set()
    for name in named(path):
        parts = name.split(".")[1:] if name.split(".")[0] == "mmu_jax" else None
        while parts and ".".join(parts) not in ROOMS:
            parts.pop()
        if parts is not None:
            found.add(".".join(parts) or "mmu_jax")
    return found


@pytest.mark.parametrize("name", ROOMS)
def test_the_package_stands_alone(name):
    assert {whole.split(".")[0] for whole in named(ROOMS[name])}.isdisjoint({"configs", "experiments", "tests"})


def test_every_way_to_import_is_seen(tmp_path):
    lines = (
        "import mmu_jax.train",
        "from mmu_jax import memory",
        "def f():\n    import mmu_jax\n    mmu_jax.study.study.Study",
    )
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert imports(tmp_path / "a.py") == {"mmu_jax", "train", "memory", "study", "study.study"}


def test_every_room_has_a_floor():
    assert {name.split(".")[0] for name in ROOMS} == set(PLACE)


@pytest.mark.parametrize("name", ROOMS)
def test_imports_run_downward(name):
    mine = name.split(".")[0]
    for other in imports(ROOMS[name]):
        top = other.split(".")[0]
        assert top == mine or PLACE[top] < PLACE[mine] or {mine, top} == {"data", "models"}, f"{name} imports {other}"


def test_no_import_goes_round():
    graph, seen = {name: imports(path) - {name, "mmu_jax"} for name, path in ROOMS.items()}, {}

    def walk(name, above):
        assert name not in above, f"{' -> '.join(above)} -> {name}"
        if name not in seen:
            for other in graph[name]:
                walk(other, (*above, name))
            seen[name] = True

    for name in graph:
        walk(name, ())


SOURCES = [
    p for folder in ("mmu_jax", "experiments", "configs", "tests") for p in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_only_the_study_knows_what_a_config_holds():
    key = r"config\.(data|model\.(path|dtype|param_dtype)|unlearn|vanilla|evaluate|saliency|attack|memory\.|mesh|save_every|save_minutes)\b"
    knows = [name for name, path in ROOMS.items() if re.search(key, path.read_text())]
    assert knows and {name.split(".")[0] for name in knows} == {"study"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", r"lora is None|\.lora\b"),
        ("plan", r"\blora\b.*import|import.*\blora\b"),
        ("models.layers", r"import.*lora"),
    ],
)
def test_nobody_asks_whether_it_is_lora(name, words):
    assert not re.search(words, ROOMS[name].read_text())


def test_no_test_imports_a_test():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [
        p.name for p in tests if re.search(r"^\s*(from|import) (test_|conftest)", p.read_text(), re.MULTILINE)
    ] == []
