"""What came back stands in the report where attacks were made, with its interval, its direction and gold beside it."""

import json

import pytest

from mmu_jax import InputError
from mmu_jax.report import attacked, figures, page, tables, words

SOURCES = {"relearn_own": "one fact of each", "int4": "4 bits"}
MODELS = ["vanilla", "gold", "ga", "grad_diff"]
POINTS = {"vanilla": (0.95, 0.94), "gold": (0.16, 0.17), "ga": (0.35, 0.64), "grad_diff": (0.13, 0.15)}
RESULTS = {name: {} for name in MODELS}


def point(step, mean):
    return {"step": step, "mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 40, "people": 10}


@pytest.fixture
def workdir(tmp_path):
    for model, (before, after) in POINTS.items():
        (tmp_path / "attacks" / model).mkdir(parents=True)
        for attack in SOURCES:
            trains = attack != "int4"
            steps = (0, 16, 32) if trains else (0, 1)
            points = [point(step, before if step == 0 or not trains else after) for step in steps]
            value = {"points": points, "trains": trains, "split": "test"}
            (tmp_path / "attacks" / model / f"{attack}.json").write_text(json.dumps(value))
    return tmp_path


def test_the_section_has_a_table_a_figure_and_sentences(workdir):
    (section,) = page._attacks(RESULTS, attacked.read(workdir, MODELS, list(SOURCES)), SOURCES, [])
    text = "\n".join(page._markdown(block) for block in section.blocks)
    assert section.title == "Does it come back?"
    assert "| Model | Before any ↓ | relearn_own ↓ | int4 ↓ |" in text
    assert "| gold | 16 [11, 21] | 17 [12, 22] | 16 [11, 21] |" in text
    assert "| ga | 35 [30, 40] | ▲ 64 [59, 69] | ▲ 35 [30, 40] |" in text
    assert "Lower is better, down to gold's level" in text and "over 40 questions" in text and "on new photos" in text
    assert (
        "Above gold (▲), by intervals that do not meet: before any attack ga; after relearn_own ga; after int4 ga."
        in text
    )
    assert "relearn_own: vanilla 95\N{NO-BREAK SPACE}% to 94\N{NO-BREAK SPACE}%, gold 16" in text
    assert "](figures/attacks.png)" in text and "int4: 4 bits" in text


def test_the_figure_has_the_curves_of_what_trains_and_gold_is_dashed(workdir):
    figure = figures.attacks_figure(attacked.read(workdir, MODELS, list(SOURCES)), RESULTS)
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == set(MODELS) and "relearn_own" in axis.get_title(loc="left")
    assert {name for name, line in lines.items() if line.get_linestyle() == "--"} == {"gold"}
    assert lines["ga"].get_xdata().tolist() == [0, 16, 32]
    assert lines["ga"].get_ydata().tolist() == pytest.approx([35, 64, 64])
    assert figures.attacks_figure(attacked.read(workdir, MODELS, ["int4"]), RESULTS) is None


def test_where_no_attack_was_made_nothing_is_told(workdir, tmp_path):
    assert page._attacks(RESULTS, attacked.read(workdir, MODELS, []), {}, []) == []
    assert page._attacks(RESULTS, attacked.read(tmp_path / "none", MODELS, list(SOURCES)), SOURCES, []) == []
    (section,) = page._attacks(RESULTS, {}, {}, ["Left out: attack membership: nobody is unseen."])
    assert "Left out: attack membership" in "\n".join(page._markdown(block) for block in section.blocks)
    ours = attacked.read(workdir, ["vanilla", "gold", "grad_diff"], list(SOURCES))
    assert attacked.notes(ours, SOURCES)[0].endswith("that do not meet: none, after none of the attacks.")
    without = attacked.read(workdir, ["vanilla", "ga"], list(SOURCES))
    assert not any("Above gold" in line for line in attacked.notes(without, SOURCES))
    (workdir / "attacks" / "ga" / "int4.json").unlink()
    shown = attacked.table(attacked.read(workdir, MODELS, list(SOURCES)), MODELS)
    assert shown[3][0] == "ga" and shown[3][-1] == "–" and "ga" in tables.markdown(shown)


def score(mean, tpr):
    return {key: value for key, value in point(0, mean).items() if key != "step"} | {"tpr": tpr}


@pytest.fixture
def inside(workdir):
    """The same with a score of membership and a question asked otherwise."""
    for model, (before, after) in POINTS.items():
        auc = {"vanilla": 0.99, "gold": 0.5, "ga": 0.75, "grad_diff": 0.25}[model]
        plain, more = ({k: v for k, v in point(0, mean).items() if k != "step"} for mean in (before, after))
        files = {
            "membership": {"measures": "auc", "before": score(0.5, 0.0), "after": score(auc, 0.1),
                           "variants": {"loss": score(auc, 0.1), "zlib": score(auc, 0.2), "reference": score(auc, 0.3)}},
            "paraphrase": {"measures": "knowledge", "split": "test", "before": plain, "after": more,
                           "variants": {"reworded 1": plain, "reworded 2": more}},
        }  # fmt: skip
        for name, value in files.items():
            (workdir / "attacks" / model / f"{name}.json").write_text(json.dumps(value | {"trains": False}))
    return workdir


ASKED = SOURCES | {"paraphrase": "other words (a paper)", "membership": "were they trained on?"}


def test_what_is_left_inside_has_a_table_of_its_own_and_every_variant_a_row(inside):
    found = attacked.read(inside, MODELS, list(ASKED))
    first, second = page._attacks(RESULTS, found, ASKED, [])
    text = "\n".join(page._markdown(block) for block in first.blocks)
    assert "| Model | Before any ↓ | relearn_own ↓ | int4 ↓ | paraphrase ↓ |" in text
    assert "| Model | membership (AUC), like gold's |" in text and "| ga | ▲ 75 [70, 80] |" in text
    assert "| grad_diff | ▼ 25 [20, 30] |" in text and "far below it gives them away too" in text
    assert text.index("Returned knowledge") < text.index("Before any") < text.index("membership: The chance")
    assert "after paraphrase ga; after membership ga." in text and "too: by membership grad_diff." in text
    assert second.folded and "variant by variant" in second.title
    (rows,) = (block.content for block in second.blocks)
    assert rows[0] == ["Attack, variant ↓", *MODELS]
    assert [row[0] for row in rows[1:]] == [
        "paraphrase, reworded 1",
        "paraphrase, reworded 2",
        "membership, loss",
        "membership, zlib",
        "membership, reference",
    ]
    assert rows[2][3] == "64 [59, 69]" and rows[3][3] == "75 [70, 80] · TPR 10, privleak -50"
    assert rows[4][4] == "25 [20, 30] · TPR 20, privleak +50"
    assert rows[5][2] == "–" and rows[5][3] == "75 [70, 80] · TPR 30", "gold is what the score is taken against"


def test_traces_are_told_of_in_words(inside):
    found = attacked.read(inside, MODELS, list(ASKED))
    said = words._returned(found, "ga", ASKED)
    assert said.startswith("in part: after relearn_own (one fact of each) the right answers")
    assert said.endswith("never knew them; membership finds more of a trace than in a model that never knew them.")
    only = {"membership": found["membership"]}
    assert words._returned(only, "ga", ASKED).startswith("not in words; membership finds")
    assert words._returned(only, "grad_diff", ASKED).startswith("no attack that was tried (membership) brought back")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"points": [], "trains": true, "split": "test"}', "fewer than two points"),
        ('{"points": [{"step": 0}], "trains": true, "split": "test"}', "points/0 without mean"),
        ('{"measures": "auc", "trains": false}', "fewer than two points"),
    ],
)
def test_a_damaged_file_is_named(workdir, text, message):
    path = workdir / "attacks" / "ga" / "int4.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"expected what .*{path}.*{message}|expected what .*{message}.*{path}"):
        attacked.read(workdir, MODELS, list(SOURCES))
