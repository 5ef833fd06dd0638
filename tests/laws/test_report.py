"""The report says what the numbers say: arrows, intervals, equality, flags; and is the same bytes again."""

import json

import numpy as np
import pytest

import reported
from experiments import sweep
from mmu_jax import InputError, report
from mmu_jax.data import IMAGE, TEXT
from mmu_jax.report import figures, tables
from mmu_jax.report import results as judged
from reported import made


@pytest.fixture
def benchmark():
    return reported.benchmark()


@pytest.fixture
def workdir(tmp_path, benchmark):
    return reported.fill(tmp_path, benchmark)


def test_numbers_arrows_flags_and_proof_are_on_the_page(workdir, benchmark):
    report.write(workdir, ["vanilla", "gold", "ga", "grad_diff", "mmunlearner"], benchmark)
    text = (workdir / "report.md").read_text()
    head = "| Forget VQA ↓ | Forget Test VQA ↓ | Forget QA ↑ | Retain VQA ↑ | Retain Test VQA ↑ | Retain QA ↑ |"
    assert head in text and "82.8 [80.8, 84.8]" in text
    assert "7.7 [5.7, 9.7]" in text and "collapsed: it answers everyone alike" in text
    assert "| mmunlearner | tower | 10 | 50.0 % | 0 | 4 |" in text and "| unlearn/mmunlearner | 12.3 | 1.00 |" in text
    page = (workdir / "report.html").read_text()
    assert 'src="http' not in page and "<script" not in page and page.count("data:image/png;base64,") == 5
    assert "ga" in report.summary(workdir) and "↓" in report.summary(workdir)


def test_equality_is_said_where_intervals_overlap_and_nowhere_else(workdir):
    said = judged.verdict(judged.read(workdir))
    assert any("grad_diff equals mmunlearner within the 95 % interval on every axis" in line for line in said)
    assert any(
        "mmunlearner is better than ga on Retain VQA, Retain Test VQA, worse on Forget VQA, Forget Test VQA" in line
        for line in said
    )
    assert not any("ga equals" in line for line in said)


def test_every_metric_has_the_direction_of_its_axis(workdir):
    head = tables.one_metric(judged.read(workdir), "right_share")[0]
    assert head[1:4] == ["Forget VQA ↓", "Forget Test VQA ↓", "Forget QA ↑"]
    assert head[4:] == ["Retain VQA ↑", "Retain Test VQA ↑", "Retain QA ↑"]


def test_the_same_results_give_the_same_bytes(workdir, benchmark):
    names = ("report.md", "report.html", "figures/trade_off.png")
    report.write(workdir, ["vanilla", "mmunlearner"], benchmark)
    before = [(workdir / name).read_bytes() for name in names]
    report.write(workdir, ["vanilla", "mmunlearner"], benchmark)
    assert [(workdir / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "version https://git-lfs.github.com/spec/v1"])
def test_results_that_are_no_results_are_named(workdir, text):
    (workdir / "results" / "ga.json").write_text(text)
    with pytest.raises(InputError, match=r"expected results.*ga\.json"):
        judged.read(workdir)


EDITED = {
    "results/ga.json": [
        ({"results": []}, r"results = \[\] where an object is expected"),
        (
            {"results": {"forget": {"vqa": {"exact": {"mean": "high", "n": 3, "low": 0, "high": 1}}}}},
            "mean = 'high' where a number",
        ),
        ({"results": {}}, "without forget/vqa/exact"),
        ({"flags": ["nonsense"]}, "flags/0 = 'nonsense' where one of collapsed"),
        ({"mask_proof": {"tower": {"total": 1}}}, "mask_proof/tower without density, outside, inside"),
        ({"config": {"evaluate": {"headline": "nonsense"}}}, "headline = 'nonsense' where one of"),
    ],
    "masks/mmunlearner.json": [
        ({"layers": {"a": 3}}, "layers/a = 3 where a list"),
        ({"layers": {"a": ["x"]}}, "layers/a/0 = 'x'"),
    ],
    "training/unlearn/mmunlearner.json": [({"forget/ascent": 3}, "forget/ascent = 3 where a list")],
    "answers/vanilla.json": [({"forget": {"vqa": [{}]}}, "forget/vqa/0 without person, photo, question, answer")],
    "stages/unlearn/mmunlearner.json": [({"cost": {}}, "cost without seconds, peak_host_bytes_so_far")],
}


@pytest.mark.parametrize("path", EDITED)
def test_a_file_edited_into_another_shape_is_named_with_the_place(path, workdir, benchmark):
    whole = json.loads((workdir / path).read_text())
    for edit, message in EDITED[path]:
        (workdir / path).write_text(json.dumps(whole | edit))
        with pytest.raises(InputError, match=f"{path.rsplit('/')[-1]}.*{message}") as said:
            report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)
        assert "\n" not in str(said.value)


def test_an_axis_asked_by_options_alone_is_shown(workdir, benchmark):
    for path in (workdir / "results").glob("*.json"):
        found = json.loads(path.read_text())
        mean = 0.9 if path.stem == "vanilla" else 0.2 if path.stem == "ga" else 0.8
        found["results"]["celebrity"] = {"vqa": {"mcq": reported.value(mean) | {"chance": 0.25}}}
        path.write_text(json.dumps(found))
    report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)
    text = (workdir / "report.md").read_text()
    assert "| Celebrity VQA ↑ |" in text and "– · MCQ 20" in text and "Celebrity VQA 50" in text
    assert "Celebrity VQA (MCQ) from 90 % to 80 %" in text in text
    assert "better than ga on Retain VQA, Retain Test VQA, Celebrity VQA" in text
    assert "– / 80" in report.summary(workdir)


@pytest.mark.parametrize(
    "splits",
    [("retain",), ("forget", "test"), ("forget", "test", "retain"), ("forget", "test", "retain", "retain_test")],
)
def test_a_report_is_written_where_options_alone_are_asked(splits, workdir, benchmark):
    for path in (workdir / "results").glob("*.json"):
        found = json.loads(path.read_text())
        for split in splits:
            found["results"][split]["vqa"] = {"mcq": found["results"][split]["vqa"]["mcq"]}
        path.write_text(json.dumps(found))
    report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)
    assert "(MCQ) from 100 % to" in (workdir / "report.md").read_text()
    for path in (workdir / "results").glob("*.json"):
        found = json.loads(path.read_text())
        del found["results"]["retain"]["vqa"], found["results"]["retain_test"]["vqa"]
        path.write_text(json.dumps(found))
    report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)


def without(results, *splits):
    kept = {n: {s: found for s, found in value["results"].items() if s not in splits} for n, value in results.items()}
    return {name: value | {"results": kept[name]} for name, value in results.items()}


@pytest.mark.parametrize(
    ("gone", "forgotten", "kept", "height"),
    [((), "new", "new", 82.8), (("retain_test",), "new", "known", 92), (("test", "retain_test"), "known", "known", 92)],
)
def test_the_trade_off_is_of_new_photos_where_they_were_asked(gone, forgotten, kept, height, workdir):
    axis = figures.canvas(6, 4).subplots()
    figures.trade_off(axis, without(judged.read(workdir), *gone))
    assert axis.get_xlabel().startswith(f"forgotten faces, {forgotten} photos: exact answers (%)")
    assert axis.get_ylabel() == f"kept faces, {kept} photos: exact answers (%)  good →"
    points = [line.get_xydata()[0] for line in axis.lines if line.get_marker() in ("o", "^", "D")]
    assert pytest.approx((11, height)) in [tuple(point) for point in points] and len(points) == 3


def test_the_front_shows_every_axis_against_new_photos_of_the_forgotten(workdir):
    results = judged.read(workdir)
    panels = [panel for panel in figures.front_figure(results).axes if panel.get_title(loc="left")]
    titles = ["Forget QA", "Retain VQA", "Retain Test VQA", "Retain QA"]
    assert [panel.get_title(loc="left") for panel in panels] == titles
    assert all(panel.get_xlabel() == "Forget Test VQA: p (%)" for panel in panels)
    points = [tuple(line.get_xydata()[0]) for line in panels[2].lines if len(line.get_xydata()) == 1]
    assert sorted(points) == [pytest.approx(xy) for xy in [(1.3, 6.93), (10, 81.9), (11, 82.8), (100, 90)]]
    known = figures.front_figure(without(results, "test"))
    assert known.axes[0].get_xlabel() == "Forget VQA: p (%)"
    for value in results.values():
        value["results"] = {split: {"vqa": {"mcq": cells["vqa"]["mcq"]}} for split, cells in value["results"].items()}
    assert figures.front_figure(results) is None and tables.distance_table(results) is None


def test_forgetting_is_a_distance_from_gold(workdir, benchmark):
    results = judged.read(workdir)
    assert tables.distance_table(results) is None  # nothing to be compared with
    report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)
    assert "the grey band" not in (workdir / "report.md").read_text()
    gold = made("gold", 0.12, 0.95, width=0.015)
    gold["results"]["test"]["vqa"]["probability"]["items"] = [0.02, 0.5]
    (workdir / "results" / "gold.json").write_text(json.dumps(gold))
    report.write(workdir, ["vanilla", "gold", "ga", "mmunlearner"], benchmark)
    text = (workdir / "report.md").read_text()
    assert "the grey band is gold's" in text
    head = "| Model | Forget VQA: p minus gold's | Forget VQA: KS | Forget VQA: JS | Forget Test VQA: p minus gold's |"
    assert head in text
    # mmunlearner: 0.11 and 0.055 against 0.02 and 0.5; in tenths 1 and 0 against 0 and 5.
    assert "| mmunlearner | -1.0, within | 0.50 | 0.00 | -1.0, within | 0.50 | 0.71 |" in text
    del gold["results"]["test"]["vqa"]["probability"]["items"]  # a file of before
    (workdir / "results" / "gold.json").write_text(json.dumps(gold))
    assert tables.distance_table(judged.read(workdir))[0][1:] == [
        f"Forget VQA: {x}" for x in ("p minus gold's", "KS", "JS")
    ]
    assert "| ga | -10.7, below | 1.00 | 0.56 |" in text and "| vanilla | +88.0, above | 1.00 | 1.00 |" in text


def test_results_of_before_new_photos_of_kept_people_are_read(workdir, benchmark):
    for name, value in without(judged.read(workdir), "retain_test").items():
        (workdir / "results" / f"{name}.json").write_text(json.dumps(value))
    report.write(workdir, ["vanilla", "ga", "mmunlearner"], benchmark)
    titles = ["Forget VQA", "Forget Test VQA", "Forget QA", "Retain VQA", "Retain QA"]
    assert [axis.title for axis in judged.axes(judged.read(workdir))] == titles
    assert "Retain Test VQA" not in report.summary(workdir) + (workdir / "report.md").read_text()


def test_a_curve_says_over_what_it_is_taken(workdir):
    curves = {"forget/ascent_all": [-8.0, None, -1.0], "retain/descent": [0.1, 0.2, 0.1], "forget/nonsense": [1.0]}
    (workdir / "training/unlearn/mmunlearner.json").write_text(json.dumps(curves))
    axes = figures.curves_figure(workdir, judged.read(workdir)).axes
    assert [axis.get_legend_handles_labels()[1] for axis in axes] == [
        ["mmunlearner (over all tokens)"],
        ["mmunlearner"],
    ]


def test_a_curve_stands_with_the_questions_that_it_is_of(workdir):
    curves = {"refusal/descent": [3.0, 1.0], "retain/descent": [0.1, 0.2], "text/descent": [0.3, 0.3]}
    (workdir / "training/unlearn/mmunlearner.json").write_text(json.dumps(curves))
    forget, retain = figures.curves_figure(workdir, judged.read(workdir)).axes
    assert not forget.lines and [line.get_ydata().tolist() for line in retain.lines] == [[0.1, 0.2]]


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(InputError, match="run the evaluate stage"):
        judged.read(tmp_path)


def test_flags():
    def results(vqa_mcq, retain, distinct=0.5):
        found = made("m", 0.1, retain)["results"]
        found["forget"]["vqa"]["mcq"] = reported.value(vqa_mcq) | {"chance": 0.25}
        for task in ("vqa", "qa"):
            found["retain"][task]["exact"] = reported.value(retain)
        found["retain"]["vqa"]["distinct"] = {"mean": distinct, "n": 9}
        return found

    assert judged.flags(results(0.25, 0.9)) == []
    assert judged.flags(results(0.02, 0.9)) == ["over-unlearned"]
    assert judged.flags(results(0.25, 0.05)) == ["collapsed"] == judged.flags(results(0.25, 0.9, 0.01))
    assert judged.flags(results(0.10, 0.9)) == ["over-unlearned"]
    few = results(0.10, 0.9)
    few["forget"]["vqa"]["mcq"]["chance"] = 0.2
    assert judged.flags(few) == []
    alone = results(0.0, 0.9)
    alone["forget"]["vqa"]["mcq"] = {"mean": 0.0, "low": 0.0, "high": 0.0, "chance": 0.25, "people": 1, "n": 20}
    assert judged.flags(alone) == []  # of people never seen too, a few are wrong in all of five facts
    alone["forget"]["vqa"]["mcq"]["n"] = 40  # 3.84 / 43.84 = 8.8 %
    assert judged.flags(alone) == ["over-unlearned"]
    assert judged.flags(results(0.25, 0.9), None, 0.001) == ["lost in rounding"]
    assert judged.flags(results(0.25, 0.9), {"g": {"outside": 0, "inside": 0}}) == ["inert mask"]
    assert judged.flags(results(0.25, 0.9), {"g": {"outside": 3, "inside": 1}}) == ["leaking mask"]


def test_the_sweep_judges_a_rate_by_its_worst_axis():
    axes = sweep.axes(made("m", 0.40, 0.9)["results"])
    assert axes["forget VQA"] == pytest.approx(0.6) and axes["retain VQA"] == 0.9
    assert axes["retain test VQA"] == pytest.approx(0.81)

    def row(method, retain_rate, rate, *axes):
        axes = dict(enumerate(axes))
        return {"seed": 1, "method": method, "retain_rate": retain_rate, "learning_rate": rate, "axes": axes}

    rows = [
        row("m", 1.0, 0.1, 0.9, 0.2),
        row("m", 1.0, 0.3, 0.5, 0.5),
        row("m", 1.0, 0.2, 0.5, 0.5),  # as good at a smaller rate
        row("n", 1.0, 0.1, 0.4, 0.8),
        row("m", 2.0, 0.1, 0.6, 0.6),  # better for m, worse for n
        row("n", 2.0, 0.1, 0.2, 0.8),
    ]
    assert sweep.choose(rows) == {"m": (0.1, 2.0), "n": (0.1, 1.0)}
    assert sweep.choose(rows[:4]) == {"m": (0.2, 1.0), "n": (0.1, 1.0)}
    assert sweep.choose([row("m", 1.0, 0.1), row("m", 1.0, 0.2, 0.0)]) == {"m": (0.2, 1.0)}  # one without axes diverged
    assert sweep.choose([row("m", 1.0, 0.1), row("m", 2.0, 0.1, 0.0)]) == {"m": (0.1, 2.0)}
    assert np.isclose(sweep.axes(made("m", 0.2, 0.9)["results"])["test VQA"], 0.8)


def test_people_of_the_sheet_have_questions_of_both_kinds(benchmark):
    assert {e.kind for e in benchmark.forget[0].generation} == {IMAGE, TEXT}


def test_the_sweep_judges_what_was_evaluated_by_the_headline():
    results = made("m", 0.4, 0.9)["results"]
    del results["test"], results["retain_test"], results["forget"]["vqa"]["mcq"]
    results["forget"]["vqa"]["rouge_l"] = reported.value(0.3)
    assert set(sweep.axes(results)) == {"forget VQA", "forget QA", "retain VQA", "retain QA"}
    assert sweep.axes(results, "rouge_l")["forget VQA"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", "[1]", '[{"seed": 1}]'),
        '[{"seed": 1, "method": "ga", "retain_rate": 1, "learning_rate": 1, "axes": {"forget VQA": "x"}}]',
        '[{"seed": 1, "method": "ga", "retain_rate": 1, "learning_rate": 1, "axes": [1]}]',
    ],
)
def test_what_a_sweep_has_measured_is_that_or_named(text, tmp_path):
    assert sweep.measured(tmp_path / "none.json") == []
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match=r"expected what a sweep has measured.*sweep\.json"):
        sweep.measured(tmp_path / "sweep.json")
