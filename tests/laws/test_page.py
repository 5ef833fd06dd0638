"""The page in a browser: what axe finds, whether it fits a phone, whether it is light enough to mail."""

import dataclasses
import html
import importlib.resources
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

import fabricated
import reported
from mmu_jax import report
from mmu_jax.report import card, comparison, deletion

NAMES = ["vanilla", "gold", "ga", "grad_diff", "mmunlearner"]
# Within a frame as wide as a screen: a window of the browser itself is never narrower than 500.
JUDGE = """
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(folded => folded.open = true);
  const wide = document.documentElement.scrollWidth, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  axe.run().then(({violations, passes}) => {
    const told = violations.map(({id, impact, nodes}) => [id, impact, nodes[0].html]);
    const found = parent.document.createElement("pre");
    found.id = "found";
    found.textContent = JSON.stringify({violations: told, passes: passes.length, wide, dark});
    parent.document.body.append(found);
  });
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report that shows people, with every kind of block."""
    benchmark = reported.benchmark()
    workdir = reported.fill(tmp_path_factory.mktemp("page"), benchmark)
    reported.attack(workdir, NAMES)
    report.write(workdir, NAMES, benchmark, {"relearn_own": "one fact of each"}, show_people=True)
    return workdir / "report.html"


def chromium(page, *options):
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def judged(page, folder, width, *options):
    """What axe and the document say of a page on a screen so many pixels wide, with everything unfolded."""
    axe = (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    scripts = "".join(f"<script>{text}</script>" for text in (axe, JUDGE))
    inner = html.escape(page.read_text().replace("</body>", scripts + "</body>"))
    (folder / "frame.html").write_text(
        f'<!doctype html><title>frame</title><iframe style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
    )
    said = chromium(folder / "frame.html", "--virtual-time-budget=30000", "--dump-dom", *options)
    found = re.search(r'<pre id="found">(.*?)</pre>', said, re.DOTALL)
    assert found, said[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    ("width", "options"), [(1400, ()), (400, ()), (400, ("--force-dark-mode",))], ids=["1400", "400", "dark"]
)
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(page, tmp_path, width, options):
    found = judged(page, tmp_path, width, *options)
    assert found["dark"] == bool(options) and found["passes"] > 15
    assert [v for v in found["violations"] if v[1] in ("serious", "critical")] == []
    assert found["wide"] <= width


def record():
    """The record of a deletion, as long as its hashes are."""
    cell = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 5, "people": 1, "each": {"p-1": 0.2}}
    checks = [
        deletion.Check(
            "recognised", "Forgotten: the faces on new photos", cell | {"mean": 0.9}, cell, None, 0.3, False, True
        ),
        deletion.Check("faces", "Kept: the faces of the others on new photos", None, None, None, None, True, None),
    ]
    return {
        "people": [{"id": "p-1", "photos": ["a" * 64, "b" * 64], "questions": "c" * 64}],
        "met": True,
        "results": [dataclasses.asdict(check) for check in checks],
        "people_never_seen": cell,
        "earlier": [],
        "not_tested_again": ["p-0"],
        "flags": ["over-unlearned"],
        "method": {"name": "projected", "source": "ascent"},
        "made": "2026-01-01T00:00:00+00:00",
        "source": {"files": {"model.safetensors": "d" * 64}},
        "output": {"files": {"model.safetensors": "e" * 64, "adapter/adapter_model.safetensors": "f" * 64}},
        "sha256": "0" * 64,
    }


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The other pages there are: of a record, and of a comparison."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "deletion.html").write_text(card.page(record()))
    runs = [fabricated.fabricate(folder / f"r{seed}", seed=seed) for seed in (0, 1)]
    comparison.write(runs, folder)
    return folder


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", ["deletion.html", "compare.html"])
def test_so_it_is_with_the_other_pages(others, tmp_path, name, width):
    found = judged(others / name, tmp_path, width)
    assert found["passes"] > 15 and found["wide"] <= width
    assert [v for v in found["violations"] if v[1] in ("serious", "critical")] == []


@pytest.mark.needs("chromium")
def test_axe_and_the_width_would_tell(page, tmp_path):
    spoilt = tmp_path / "spoilt.html"
    faint = '<p style="color:#ccc;background:#fff;width:900px">faint and wide</p><img src="data:,">'
    spoilt.write_text(page.read_text().replace("</main>", f"{faint}</main>"))
    found = judged(spoilt, tmp_path, 400)
    assert {v[0] for v in found["violations"]} >= {"color-contrast", "image-alt"} and found["wide"] > 400


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_screenshot_shows_something_all_the_way_down(page, tmp_path, width):
    chromium(page, f"--screenshot={tmp_path / 'shot.png'}", f"--window-size={width},2400")
    seen = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert seen.shape == (2400, width, 3) and len(np.unique(seen.reshape(-1, 3), axis=0)) > 200
    inked = (np.abs(seen - seen[0, 0]).max(axis=-1) > 60).reshape(6, 400, width).mean(axis=(1, 2))
    assert inked.min() > 0.005, inked  # text is thin: a band of it covers a few hundredths


def test_the_page_is_light_and_stands_alone(page):
    text = page.read_text()
    assert len(text.encode()) < 1_000_000
    assert "<script" not in text and not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    shown = re.findall(r'<img alt="([^"]*)"', text)
    assert len(shown) == text.count("<img ") == 7 and all(len(alt) > 40 for alt in shown)
    assert "@media print" in text and "prefers-color-scheme:dark" in text
