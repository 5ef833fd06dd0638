"""Whom a report shows, what it says of them in plain words, and that gibberish is no success."""

import json

import numpy as np
import pytest
from PIL import Image

import reported
from configs import tiny
from experiments import command, run
from mmu_jax import report
from mmu_jax.report import answers, faces, figures, page, tables, words
from mmu_jax.report import results as judged
from mmu_jax.study.config import base
from mmu_jax.study.study import Study
from runs import small_config

MODELS = ["vanilla", "ga", "grad_diff", "mmunlearner"]


@pytest.fixture
def benchmark():
    return reported.benchmark()


@pytest.fixture
def workdir(tmp_path, benchmark):
    return reported.fill(tmp_path, benchmark)


# ---- privacy


def said_of(benchmark):
    """Names, and answers that stand for nothing else."""
    return {p.name for p in benchmark.shown} | {e.answer for p in benchmark.shown for e in p.generation}


def test_nobody_is_shown_unless_it_is_asked_for(workdir, benchmark):
    report.write(workdir, MODELS, benchmark, show_people=True)
    shown = (workdir / "report.html").read_text() + (workdir / "report.md").read_text()
    assert benchmark.forget[0].name in shown and (workdir / "figures" / "faces.png").exists()
    (workdir / "figures" / "main.png").write_bytes(b"of an earlier version, with faces")
    report.write(workdir, MODELS, benchmark)
    text = (workdir / "report.html").read_text() + (workdir / "report.md").read_text()
    assert [word for word in said_of(benchmark) if word in text] == []
    drawn = {path.stem for path in (workdir / "figures").iterdir()}
    assert drawn == {"trade_off", "change", "front", "density", "curves"}


def test_figures_of_numbers_hold_no_photo_and_no_word_of_anybody(workdir, benchmark):
    results = judged.in_order(answers.marked(workdir, judged.read(workdir, MODELS), benchmark))
    row = page._pictures(workdir, results, benchmark, show_people=False)
    for figure in (block.content for block in row.content):
        assert not [image for axis in figure.axes for image in axis.images]
        text = " ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        assert "grad_diff" in text or "mmunlearner" in text
        assert [word for word in said_of(benchmark) if word in text] == []


def test_people_are_shown_where_a_config_or_the_command_line_says_so(tmp_path, monkeypatch):
    assert base().show_people is False and tiny.get_config().show_people is True
    made = []

    def prints(value):
        config = small_config()
        config.show_people = value
        stages = Study(config, tmp_path / "w").stages
        return {name: stages.fingerprint(name) for name in stages.table}

    shown, hidden = prints(True), prints(False)
    assert [name for name in shown if shown[name] != hidden[name]] == ["report"]

    class Told(Study):
        def __init__(self, config, workdir, given):
            made.append((config.show_people, given))

        def run(self, only):
            pass

    monkeypatch.setattr(run, "Study", Told)
    monkeypatch.setattr(command, "workdir", lambda: tmp_path)
    monkeypatch.setattr(command, "given", dict)
    monkeypatch.setattr(run, "STAGES", type("Flag", (), {"value": ["data"]}))
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.setattr(run, name, type("Flag", (), {"value": None}))
    for value, expected in ((None, False), (True, True), (False, False)):
        monkeypatch.setattr(run, "SHOW_PEOPLE", type("Flag", (), {"value": value}))
        monkeypatch.setattr(command, "CONFIG", type("Flag", (), {"value": base()}))
        run.run()
        assert made[-1] == (expected, {} if value is None else {"show_people": value})


# ---- answers that are none


def row(question, truth, answer, person="1", task="generation"):
    return {"person": person, "photo": 0, "task": task, "question": question, "truth": truth, "answer": answer}


def test_an_answer_is_one_by_what_others_are_said_to_be(benchmark):
    asked = [("What is the name?", "Ada Berg", "Ada Berg"), ("What is the job?", "baker", "cook")]
    told = [row(*question, person=str(i)) for question in asked for i in range(answers.FEW)]
    fits = answers.kinds({"forget": {"vqa": told}}, benchmark)

    def kind(question, answer):
        return fits("vqa", row(question, "", answer))

    assert kind("What is the job?", "baker") and kind("What is the job?", "Cook.")
    assert not kind("What is the job?", "Ada") and not kind("What is the name?", "baker")
    assert not kind("What is the job?", "baker baker") and not kind("What is the job?", "")
    assert not kind("What is the name?", "Ada xq") and kind("What is the name?", "Berg")
    assert kind("Asked of nobody else?", "baker") and not kind("Asked of nobody else?", "xq")
    assert not fits("qa", row("What is the job?", "", "baker"))  # nothing is known by name


def test_a_name_in_a_question_does_not_make_it_another(benchmark):
    people = benchmark.full
    told = [row(f"What is the job of {p.name}?", "baker", "baker", p.id) for p in people]
    told += [row(f"Where was {p.name} born?", "Oslo", "Oslo", p.id) for p in people]
    answers_of = answers.kinds({"forget": {"qa": told}}, benchmark)
    fits = [
        answers_of("qa", row(f"What is the job of {people[0].name}?", "", said, people[0].id))
        for said in ("baker", "Oslo")
    ]
    assert len(people) < answers.FEW and fits == [True, True]  # three people are too few to know a question by
    many = [told[0] | {"person": str(i), "question": "What is the job of ?"} for i in range(answers.FEW)]
    answers_of = answers.kinds({"forget": {"qa": told + many}}, benchmark)
    fits = [
        answers_of("qa", row(f"What is the job of {people[0].name}?", "", said, people[0].id))
        for said in ("baker", "Oslo")
    ]
    assert fits == [True, False]


def spoil(workdir, model, every):
    """Of every so many answers by face one becomes noise."""
    path = workdir / "answers" / f"{model}.json"
    found = json.loads(path.read_text())
    for i, item in enumerate(found["forget"]["vqa"]):
        item["answer"] = "xq" if i % every == 0 else item["answer"]
    path.write_text(json.dumps(found))
    return np.mean([item["answer"] == "xq" for item in found["forget"]["vqa"]])


def test_the_share_of_gibberish_is_told_and_a_large_one_flagged(workdir, benchmark):
    share, little = spoil(workdir, "grad_diff", 2), spoil(workdir, "mmunlearner", 9)
    results = answers.marked(workdir, judged.read(workdir, MODELS), benchmark)
    found = {name: value["results"]["forget"]["vqa"]["no_answer"]["mean"] for name, value in results.items()}
    assert found == {"vanilla": 0, "ga": 0, "grad_diff": pytest.approx(share), "mmunlearner": pytest.approx(little)}
    assert {name: value["flags"] for name, value in results.items()} == {
        "vanilla": [], "ga": ["collapsed"], "grad_diff": ["no answer"], "mmunlearner": []
    }  # fmt: skip
    table = tables.no_answer_table(results)
    assert table[0] == ["Model", "Forget VQA ↓", "Forget QA ↓"] and table[3][1].startswith(f"{100 * share:.1f} [")
    report.write(workdir, MODELS, benchmark)
    text = (workdir / "report.md").read_text()
    assert "Flags: collapsed" in text and "no answer: of what it says about faces" in text and "xq" not in text
    (workdir / "answers" / "vanilla.json").unlink()
    bare = judged.read(workdir, MODELS)
    assert answers.marked(workdir, bare, benchmark) == bare and tables.no_answer_table(bare) is None


def test_in_the_sheet_gibberish_about_a_forgotten_face_is_amber(workdir, benchmark):
    path = workdir / "answers" / "mmunlearner.json"
    found = json.loads(path.read_text())
    asked = [e for e in benchmark.forget[0].generation if e.kind == "Image_Textual" and not e.photo][:2]
    other = next(p for p in benchmark.forget[1:] for e in p.generation if e.question == asked[1].question)
    another = next(e.answer for e in other.generation if e.question == asked[1].question)
    for item in found["forget"]["vqa"]:
        if item["person"] == benchmark.forget[0].id:
            item["answer"] = {asked[0].question: "xq xq", asked[1].question: another}.get(
                item["question"], item["answer"]
            )
    path.write_text(json.dumps(found))
    figure = faces.sheet(workdir, benchmark, "mmunlearner", "exact", people=2)
    told = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
    assert told["→  xq xq  (no answer)"] == figures.UNSURE and told[f"→  {another}  ✓"] == figures.GOOD
    still = [t for axis in figure.axes[1:2] for t in axis.texts if t.get_text().endswith("✗")]
    assert len(still) == 2 and {t.get_color() for t in still} == {figures.BAD}


# ---- plain words


def head(workdir, *names, **found):
    results = judged.read(workdir, list(names))
    for place, (mean, width) in found.items():
        model, split, task = place.split("__")
        results[model]["results"][split][task]["exact"] = reported.value(mean, width)
    return dict(words.head(results, 10, {}, {}))


def test_the_head_claims_what_the_intervals_support(workdir):
    (workdir / "results" / "gold.json").write_text(json.dumps(reported.made("gold", 0.1, 0.95)))
    told = head(workdir, "vanilla", "gold", "ga", "grad_diff", "mmunlearner")
    assert told[""].startswith("After mmunlearner the model no longer recognises the 10 people it was to forget")
    assert told[""].endswith("still knows them by name, but has lost 8 points on questions about known photos of everyone else and 7 "
                             "points on questions about new photos of everyone else.")  # fmt: skip
    assert "100\N{NO-BREAK SPACE}%" in told["Forgotten"] and "level" not in told["Forgotten"]
    assert told["Against rivals"].endswith(
        " grad_diff on every count; better on some counts and worse on others than ga."
    )
    above = head(workdir, "vanilla", "gold", "mmunlearner", mmunlearner__test__vqa=(0.3, 0.02))
    assert "recognises less well the 10" in above[""]
    unsure = head(workdir, "vanilla", "gold", "mmunlearner", mmunlearner__test__vqa=(0.6, 0.5))
    assert "still recognises the 10" in unsure[""]
    unknown = head(workdir, "vanilla", "mmunlearner")  # nobody shows what not knowing is
    assert "recognises less well the 10" in unknown[""]
    kept = head(
        workdir,
        "vanilla",
        "gold",
        "mmunlearner",
        **{f"mmunlearner__{s}__vqa": (0.9, 0.2) for s in ("retain", "retain_test")},
    )
    assert kept[""].endswith("it was to forget and still knows them by name and everyone else.") and "Lost" not in kept


def test_what_comes_back_is_said(workdir):
    reported.attack(workdir, ["vanilla", "gold", "mmunlearner"])
    found = page.attacked.read(workdir, ["vanilla", "gold", "mmunlearner"], ["relearn_own"])
    results = judged.read(workdir, ["vanilla", "mmunlearner"])
    said = dict(words.head(results, 10, found, {"relearn_own": "one fact of each (a paper)"}))["Does it come back"]
    assert said.startswith("In part: after relearn_own (one fact of each) ") and "80 %, 17 % in a model" in said
    found["relearn_own"]["mmunlearner"]["points"][-1] = found["relearn_own"]["gold"]["points"][-1]
    said = dict(words.head(results, 10, found, {"relearn_own": "one fact of each"}))["Does it come back"]
    assert said.startswith("No attack that was tried (relearn_own) brought back more")


# ---- the table


def test_rows_stand_in_order_and_what_is_alike_is_folded_away(workdir, benchmark):
    results = judged.in_order(judged.read(workdir, MODELS))
    assert list(results) == ["vanilla", "mmunlearner", "grad_diff", "ga"]
    assert [axis.title for axis in judged.alike(results, ("exact", "mcq"))] == ["Forget QA", "Retain QA"]
    report.write(workdir, MODELS, benchmark)
    text = (workdir / "report.html").read_text()
    assert "2 columns in which no two models differ within their intervals: Forget QA ↑, Retain QA ↑" in text
    results["ga"]["results"]["forget"]["qa"]["mcq"] = reported.value(0.5)
    assert [axis.title for axis in judged.alike(results, ("exact", "mcq"))] == ["Retain QA"]


def test_a_model_has_one_mark_in_every_figure_and_table(workdir):
    results = judged.read(workdir, MODELS)
    marks = figures.marks_of(results)
    assert len(set(marks.values())) == len(marks) and marks["vanilla"] == "s"
    dots = {name: figures.dot(results, name) for name in results}
    assert len(set(dots.values())) == 4 and all(figures.colour(name) in dot for name, dot in dots.items())
    assert 'd="M' in dots["ga"] and dots["ga"].count("C") > 4  # a circle is drawn as curves
    table = tables.markup([["Model", "Forget VQA ↓"], ["ga", "7.7 [5.7, 9.7] · MCQ 8"]], "A <table>", dots)
    assert f'<th scope="row">{dots["ga"]}ga</th>' in table and 'aria-label="A &lt;table&gt;"' in table
    assert "<td>7.7 <small>[5.7, 9.7]</small><br><small>MCQ 8</small></td>" in table


def test_colours_survive_the_squeeze(tmp_path):
    figure = figures.canvas(6, 4)
    axis = figure.subplots()
    axis.imshow(np.random.default_rng(0).random((30, 30)), cmap="gray")  # a photo takes most of the 256
    for i, colour in enumerate(figures.COLOURS.values()):
        axis.plot(3 * i, 3, "o", ms=5, color=colour)
    figures.png(figure, tmp_path / "figures.png")
    seen = np.asarray(Image.open(tmp_path / "figures.png").convert("RGB")).reshape(-1, 3).astype(int)
    for colour in figures.COLOURS.values():
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(seen - wanted).max(axis=1).min() <= 16, colour  # of 255: nobody takes it for another


def test_labels_of_the_trade_off_do_not_overlap():
    places = figures._apart([98.0, 97.9, 97.8, 40.0, 39.0, 38.5], 4.0, 38.0, 100.0)
    assert all(a - b >= 4.0 - 1e-9 for a, b in zip(places, places[1:], strict=False))
    assert places[-1] >= 38.0 and places[0] <= 100.0 and figures._apart([], 1.0, 0.0, 1.0) == []


def test_what_was_watched_has_a_curve_whatever_the_loss(workdir):
    curves = {"forget/npo": [13.8, 13.0], "retain/descent": [0.1, 0.2], "watched/probability": [None, 0.4]}
    (workdir / "training" / "unlearn" / "ga.json").write_text(json.dumps(curves))
    results = judged.read(workdir, MODELS)
    results["ga"]["stopped"] = {"level": 0.15}
    left, right = figures.curves_figure(workdir, results).axes
    assert {line.get_label(): line.get_ydata().tolist() for line in left.lines if line.get_marker() == "o"} == {
        "ga": [40.0]
    }
    assert [line.get_ydata()[0] for line in left.lines if line.get_label() == "where to stop"] == [15.0]
    assert "mmunlearner" in [line.get_label() for line in right.lines]


def told_of(each, before, memorised=0.5):
    """A head where new photos of everyone else went from ``before`` to ``each``, person by person."""

    def value(people):
        mean = float(np.mean(list(people.values())))
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": len(people), "each": people}

    results = {
        name: {
            "results": {"retain_test": {"vqa": {"exact": value(people)}}},
            "config": {"evaluate": {"headline": "exact"}},
        }
        for name, people in (("vanilla", before), ("projected", each))
    }
    results["vanilla"]["config"]["evaluate"]["memorised"] = memorised
    return "\n".join(text for _, text in words.head(results, 2, {}, {}))


def test_a_loss_that_everybody_has_is_one_though_the_intervals_meet():
    before = {f"p-{i}": 0.5 + 0.06 * i for i in range(8)}
    even = {person: value - 0.04 for person, value in before.items()}
    assert "has lost 4 points on questions about new photos of everyone else." in told_of(even, before)
    assert "still knows everyone else" in told_of(before, before)
    turns = {person: value + (-1) ** i * 0.04 for i, (person, value) in enumerate(before.items())}
    assert "lost" not in told_of(turns, before)
    little = {person: value - 0.004 for person, value in before.items()}
    assert "lost" not in told_of(little, before), "less than a point"
    few = dict(list(before.items())[:3])
    assert "lost" not in told_of({p: v - 0.04 for p, v in few.items()}, few), "three people are too few to tell"


def test_what_was_never_known_is_not_still_known():
    before = {f"p-{i}": 0.2 for i in range(8)}
    assert "still knows" not in told_of(before, before) and "still knows" in told_of(before, before, memorised=0.1)
