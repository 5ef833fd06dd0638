"""Runs are compared on the same people: what is worked out by hand is what the tables, the CSV and the LaTeX say."""

import csv
import json
import pathlib
import re
import subprocess
import types

import numpy as np
import pytest

import needed
from fabricated import ASKED, KEPT, LEFT, LEVELS, fabricate
from mmu_jax import InputError, metrics
from mmu_jax.report import comparison, figures, latex, paired, runs
from mmu_jax.report.results import AXES


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two seeds: projected minus ga is 0.2 and 0.4, projected minus mmunlearner -0.1 and 0.5."""
    tmp_path = tmp_path_factory.mktemp("two")
    first = fabricate(tmp_path / "one", {"vanilla": 0.9, "ga": 0.3, "mmunlearner": 0.6, "projected": 0.5}, seed=0)
    return [
        first,
        fabricate(tmp_path / "two", {"vanilla": 0.9, "ga": 0.5, "mmunlearner": 0.4, "projected": 0.9}, seed=1),
    ]


@pytest.fixture(scope="module")
def written(two, tmp_path_factory):
    """Where the comparison of ``two`` is, and what it said."""
    out = tmp_path_factory.mktemp("written")
    return out, comparison.write(two, out)


def column(paths, axis=KEPT, metric="exact"):
    merged = runs.merge(runs.read(paths))
    return next(c for c in paired.columns(merged, metric) if c.axis == axis)


def test_a_paired_difference_and_its_interval_are_those_worked_out_by_hand(two, tmp_path):
    found = column(two)
    # Two seeds drawn twice: 0.2, 0.3 or 0.4 with 1/4, 1/2, 1/4.
    assert found.minus("projected", "ga") == pytest.approx((0.3, 0.2, 0.4, 2, 2))
    assert found.minus("projected", "mmunlearner") == pytest.approx((0.2, -0.1, 0.5, 2, 1))
    assert found.mean("projected") == pytest.approx((0.7, 0.5, 0.9, 2, 2))
    assert found.minus("projected", "grad_diff") is None
    # One run, two people: 0.1, 0.3 or 0.5; means of another order of people are paired all the same.
    levels = {"vanilla": 1.0, "ga": {"a": 0.2, "b": 0.2}, "projected": {"b": 0.7, "a": 0.3}}
    alone = column([fabricate(tmp_path / "alone", levels)])
    assert alone.minus("projected", "ga") == pytest.approx((0.3, 0.1, 0.5, 1, 1))


def test_what_stands_in_a_row_is_drawn_together():
    rng = np.random.default_rng(0)
    pairs = {(seed, group): rng.normal(size=(4, 2)) for seed in range(3) for group in range(2)}
    draws = metrics.nested_draws(pairs, samples=200)
    differences = metrics.nested({pair: of[:, 0] - of[:, 1] for pair, of in pairs.items()}, samples=200)
    low, high = np.percentile(draws[:, 0] - draws[:, 1], [2.5, 97.5])
    assert (low, high) == pytest.approx((differences["low"], differences["high"]))


def test_ranks_are_shared_where_the_interval_holds_0(two):
    kept = column(two)
    # mmunlearner minus ga is 0.3 and -0.1: it is told apart from neither; projected is from ga.
    assert kept.ranks() == {"ga": 2, "mmunlearner": 1, "projected": 1}
    forgotten = column(two, LEFT)  # 1 minus the level, and less is better
    assert not forgotten.up and forgotten.ranks() == {"ga": 2, "mmunlearner": 1, "projected": 1}
    assert forgotten.minus("projected", "ga") == pytest.approx((-0.3, -0.4, -0.2, 2, 0))


def test_the_page_says_what_was_worked_out(written):
    out, said = written
    text, page = ((out / f"compare.{kind}").read_text() for kind in ("md", "html"))
    assert said[0] == "3 methods over 2 runs (seeds 0, 1; group 0), compared with projected."
    titles = ", ".join(axis.title for axis in ASKED if axis != AXES[0])
    assert f"projected is better than ga on Forget Test VQA, {titles.split(', ', 1)[1]}, worse on Forget VQA." in said
    assert "| ga | -30.0 " not in text and "+30.0 [+20.0, +40.0] · 2 of 2 above 0, better" in text
    assert "-30.0 [-40.0, -20.0] · 0 of 2 above 0, better" in text and "+20.0 [-10.0, +50.0] · 1 of 2 above 0 |" in text
    assert "| Method | Forget VQA ↓ | Forget Test VQA ↓ | Forget QA ↑ |" in text and "| Runs |" not in text
    assert 'src="http' not in page and "<script" not in page and page.count("data:image/png;base64,") == 1
    assert "<title>Comparison of runs</title>" in page and "No flag was raised." in page


def test_the_same_runs_give_the_same_bytes(two, written, tmp_path):
    comparison.write(two, tmp_path)
    names = [f"compare.{kind}" for kind in ("md", "html", "csv", "tex")]
    assert [(tmp_path / name).read_bytes() for name in names] == [(written[0] / name).read_bytes() for name in names]


def test_the_front_joins_what_no_other_beats():
    at = {"a": (0.1, 0.2), "b": (0.3, 0.9), "c": (0.3, 0.8), "d": (0.5, 0.9), "e": (0.1, 0.2)}
    assert figures.undominated(at) == ["a", "e", "b"]


def test_the_figure_shows_the_front_of_every_axis(two):
    merged = runs.merge(runs.read(two))
    pooled = paired.pooled(merged, [*paired.columns(merged), *paired.columns(merged, "probability")])
    panels = figures.front_figure(pooled, joined=True).axes
    (front,) = [line for line in panels[2].lines if line.get_linestyle() == ":"]
    # Kept and left are one minus the other: projected, at 0.7 and 0.3, is beside none.
    assert panels[2].get_title(loc="left") == KEPT.title and front.get_xydata().tolist() == [pytest.approx([30, 70])]
    assert panels[2].get_xlim()[1] < 80  # vanilla is a line, so that methods are seen apart


def test_the_csv_has_every_number_of_every_run(two, written):
    rows = list(csv.DictReader((written[0] / "compare.csv").open(newline="")))
    assert tuple(rows[0]) == runs.HEAD and len(rows) == 2 * 4 * len(ASKED) * 2
    (row,) = [r for r in rows if (r["run"], r["model"], r["split"], r["task"], r["metric"])
              == ("two", "ga", "test", "vqa", "exact")]  # fmt: skip
    assert (row["seed"], row["group"], row["n"]) == ("1", "0", "4")
    assert [float(row[key]) for key in ("mean", "low", "high")] == pytest.approx([0.5, 0.4, 0.6])


MIXES = {
    "another data set": ({"data__name": "clear"}, "data.name = 'faces' ({0}), 'clear' ({1})"),
    "another split": ({"data__forget": "f20"}, "data.forget = 'f' ({0}), 'f20' ({1})"),
    "another headline": ({"evaluate__headline": "rouge_l"}, "evaluate.headline = 'exact' ({0}), 'rouge_l' ({1})"),
    "another model": ({"model__path": "n"}, "model.path = 'm' ({0}), 'n' ({1})"),
    "other questions": ({"evaluate__new_tokens": 50}, "evaluate.new_tokens = 8 ({0}), 50 ({1})"),
}


@pytest.mark.parametrize("what", MIXES)
def test_runs_that_cannot_be_compared_are_refused_by_name(what, tmp_path):
    changes, words = MIXES[what]
    paths = [fabricate(tmp_path / "one"), fabricate(tmp_path / "two", seed=1, **changes)]
    with pytest.raises(InputError, match="runs that can be compared") as said:
        comparison.write(paths, tmp_path / "out")
    assert words.format(*paths) in str(said.value) and not (tmp_path / "out").exists()


def test_data_in_a_folder_is_known_by_what_is_in_it(tmp_path):
    paths = [fabricate(tmp_path / "one", data__path="/a"), fabricate(tmp_path / "two", seed=1, data__path="/b")]
    with pytest.raises(InputError, match=r"data\.path = '/a'"):
        runs.read(paths)
    for path, content in zip(paths, ("x", "x"), strict=True):
        (path / "stages").mkdir()
        (path / "stages" / "data.json").write_text(json.dumps({"reads": {"data": {"path.content": content}}}))
    assert len(runs.read(paths)) == 2


REFUSED = {
    "nothing": ([], {}, "found none; name at least one"),
    "no results": (["nowhere"], {}, "found none; run the evaluate stage first"),
    "twice": (["one", "./one"], {}, "every workdir once"),
    "no such method": (["one"], {"against": "npo"}, "--against among ga, projected, mmunlearner, found npo"),
    "nothing unlearned": (["before"], {}, "expected a method in the runs"),
    "two results of one seed": (["one", "again"], {}, "found others of ga at seed 0, group 0 (one, again)"),
    "other people": (["strangers"], {}, "asked about the same people, found others for projected on Forget VQA"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_comparison_is_one_line(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fabricate(pathlib.Path("one"))
    fabricate(pathlib.Path("again"), LEVELS | {"ga": 0.4})
    fabricate(pathlib.Path("before"), {"vanilla": 1.0, "gold": 0.5}, seed=1)
    fabricate(pathlib.Path("strangers"), LEVELS | {"projected": {"a": 0.1, "c": 0.1}}, seed=2)
    paths, options, words = REFUSED[what]
    with pytest.raises(InputError, match=re.escape(words)):
        comparison.write(paths, "out", **options)


def test_other_methods_of_one_seed_and_group_stand_beside_one_another(tmp_path):
    paths = [
        fabricate(tmp_path / "one", {"vanilla": 0.9, "ga": 0.3}),
        fabricate(tmp_path / "two", {"vanilla": 0.9, "projected": 0.7}),
    ]
    merged = runs.merge(runs.read(paths))
    assert list(merged) == [(0, 0)] and list(merged[0, 0]) == ["vanilla", "ga", "projected"]
    assert column(paths).minus("projected", "ga").mean == pytest.approx(0.4)


def test_a_method_that_is_missing_from_a_run_is_told_of(two, tmp_path):
    third = fabricate(
        tmp_path / "three", {"vanilla": 0.9, "ga": 0.1, "projected": 0.2}, seed=1, group=4, flags=["collapsed"]
    )
    said = comparison.write([*two, third], tmp_path / "out")
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "over 3 runs (seeds 0, 1; groups 0, 4)" in said[0]
    assert "In 2 of 3 runs alone, and compared over these: mmunlearner." in text and "| 2 of 3 |" in text
    assert "projected in 1 of 3." in text and "Flag collapsed (it answers everyone alike" in text
    found = column([*two, third])
    assert found.minus("projected", "mmunlearner").pairs == 2 and found.minus("projected", "ga").pairs == 3


def test_files_without_people_are_compared_over_runs_and_the_page_says_so(tmp_path):
    old = fabricate(tmp_path / "old", {"vanilla": 0.9, "ga": 0.3, "projected": 0.5}, told=False)
    new = fabricate(tmp_path / "new", {"vanilla": 0.9, "ga": 0.3, "projected": {"a": 0.8, "b": 0.6}}, seed=1)
    found = column([old, new])
    assert not found.by_person and found.minus("projected", "ga") == pytest.approx((0.3, 0.2, 0.4, 2, 2))
    comparison.write([old, new], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert "person by person: all is compared by a bootstrap over runs alone. Of 2 it tells apart" in text
    assert "whatever has one sign in all, as chance has once in 2." in text
    alone = column([old])  # one number says nothing of another run: nothing is better
    assert alone.minus("projected", "ga").low == -np.inf and set(alone.ranks().values()) == {1}
    comparison.write([old], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert "| ga | +20.0 · 1 of 1 above 0 |" in text and "Of one it tells nothing apart." in text


def test_what_was_not_made_alike_is_told(tmp_path):
    rates = {"unlearn__learning_rate": {"ga": 2e-5, "projected": 1e-4, "npo": 3.0}}
    paths = [fabricate(tmp_path / "one"), fabricate(tmp_path / "two", seed=1, group=2, **rates)]
    assert runs.settings(runs.read(paths)) == ["unlearn.learning_rate.ga = 1e-05 (one), 2e-05 (two)"]
    assert runs.settings(runs.read(paths[:1])) == []


def test_no_place_of_this_machine_is_in_what_is_written(written, two):
    for name in ("compare.html", "compare.md", "compare.csv", "compare.tex"):
        assert str(pathlib.Path(two[0]).parent) not in (written[0] / name).read_text()


def test_text_is_latex():
    assert latex.escape(r"a_b 95 % & #1 {x} $ ~ ^ \ <") == (
        r"a\_b 95 \% \& \#1 \{x\} \$ \textasciitilde{} \textasciicircum{} \textbackslash{} $<$"
    )
    assert latex.escape("Forget VQA ↓ 東 é") == r"Forget VQA $\downarrow$ ? é"
    assert latex.escape("-1.0 [+2.0, -3.0] re-run") == "$-$1.0 [$+$2.0, $-$3.0] re-run"


@pytest.mark.needs("pdflatex")
def test_the_tables_are_set_by_latex_within_the_page(written, tmp_path):
    head = ["", *(f"Retain Test VQA {i} ↑" for i in range(10))]
    wide = latex.table(
        [head, *([name, *["-12.3 [-45.6, -10.2]"] * 10] for name in ("projected_retain", "ga"))], "Wide."
    )
    assert wide.count(r"\begin{tabular}{@{}lrrrrr@{}}") == 2 and wide.count("projected\\_retain") == 2
    (tmp_path / "compare.tex").write_text((written[0] / "compare.tex").read_text() + wide)
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{compare.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_a_test_is_left_out_only_where_its_program_is_not_there(monkeypatch):
    def item(*names):
        marks = [types.SimpleNamespace(args=names)] if names else []
        return types.SimpleNamespace(nodeid="t", iter_markers=lambda name: marks)

    monkeypatch.setattr(needed.shutil, "which", lambda name: None)
    assert needed.absent(item("pdflatex")) == ["pdflatex"] and needed.absent(item()) == []
    assert any("pdflatex" in line and "texlive-latex-recommended" in line for line in needed.advice())
    monkeypatch.setattr(needed.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert needed.absent(item("pdflatex")) == needed.advice() == []
    with pytest.raises(ValueError, match="among chromium, pdflatex"):
        needed.absent(item("nonsense"))
