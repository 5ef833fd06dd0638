"""The pages say what the code says."""

import importlib.util
import pathlib
import pkgutil
import re

import pytest

import mmu_jax
from configs import common
from mmu_jax.membership import SCORES
from mmu_jax.metrics import METRICS

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_page_of_methods_is_made_from_the_tables():
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.page().rstrip()
    assert made == (ROOT / "docs" / "methods.md").read_text().rstrip(), "python docs/make_methods.py > docs/methods.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_points_at_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"^::: (mmu_jax[\w.]*)", page.read_text(), re.MULTILINE):
        assert pkgutil.resolve_name(name)


def test_every_module_has_its_page():
    told = {name for page in PAGES for name in re.findall(r"^::: mmu_jax\.(\w+)", page.read_text(), re.MULTILINE)}
    assert told == {m.name for m in pkgutil.iter_modules(mmu_jax.__path__)}


def test_the_plans_of_published_models_are_those_that_the_page_tells():
    from experiments import footprint

    text, found, name = (ROOT / "docs" / "memory.md").read_text(), {}, ""
    for line in text.split("## Published models")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"\d x \d", cells[1]):
            name = cells[0].lower() or name
            found[name, cells[1]] = [tuple(map(int, cell.split(" / "))) for cell in cells[2:]]
    want = {
        (row["model"], "{} x {}".format(*row["devices"])): [
            tuple(map(round, row[how][:2])) for how in ("params", "lora")
        ]
        for row in footprint.planned()
    }
    assert len(found) == 7 and found == {key: want[key] for key in found}


def test_numbers_of_the_readme_are_those_of_the_results_page():
    rows = {}
    for line in (ROOT / "docs" / "results.md").read_text().splitlines():
        if found := re.match(r"\| (\w+) \| (\d.*MCQ.*)", line):
            rows[found[1]] = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", found[2])
    told = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(told) == 2 + len(common.SHOWN)
    for name, line in told:
        cells = [rows[name][i] for i in (1, 2, 4, 5)]  # without the photos that were shown in training
        whole = ["{} ({}–{})".format(*(int(float(x) + 0.5) for x in cell)) for cell in cells]
        assert line.split(" | ") == whole, name


def test_the_page_of_measures_names_every_metric_and_score():
    text = (ROOT / "docs" / "measures.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in text] == []
    assert [score.title for score in SCORES.values() if f"| {score.title} |" not in text] == []
