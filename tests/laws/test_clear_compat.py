"""CLEAR's own table, against its definition written out with scipy; which way every number goes; what is asked and how it is told."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.spatial.distance import jensenshannon
from scipy.stats import hmean, ks_2samp

import reported
from configs import tiny
from folders import refused
from mmu_jax import InputError, clear_compat, files, metrics
from mmu_jax.clear_compat import TASKS
from mmu_jax.data import builders, loader
from mmu_jax.data import tiny as small
from mmu_jax.report import answers, page, results
from mmu_jax.report import clear as told
from mmu_jax.study import checks, clear, steps
from mmu_jax.study.workspace import Workspace

# Of every task three questions: summed log-probabilities of the right answer, of it in other words, of two wrong ones.
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(2, 9, (3, 4)).astype(float)
LOGPS = {name: -RNG.uniform(0.1, 2.0, (3, 4)) * LENGTHS for name in TASKS}
GOLD = -RNG.uniform(0.1, 2.0, (3, 4)) * LENGTHS
ROUGE = dict(zip(TASKS, RNG.uniform(0.1, 0.9, len(TASKS)), strict=True))


def options(name, logps):
    """As the model is asked them: of what is no caption there are no other words."""
    kept = [0, 1, 2, 3] if TASKS[name].captions else [0, 2, 3]
    return logps[:, kept], LENGTHS[:, kept]


def by_definition(pooled):
    """Task -> its three numbers; and the ratios of the captions to forget of the model and of gold, from losses a token."""
    found, ratios = {}, []
    for name, logps in [*LOGPS.items(), ("gold", GOLD)]:
        losses = -logps / LENGTHS
        captions = name in ("forget", "retain", "gold")
        paraphrased, perturbed = losses[:, 1 if captions else 0], losses[:, 2:]
        ratio = np.exp((perturbed.mean() if pooled else perturbed.mean(axis=1)) - paraphrased)
        ratios += [ratio] if name in ("forget", "gold") else []
        p, wrong = np.exp(-losses[:, 0]), np.exp(-perturbed).sum(axis=1)
        rated = np.minimum(ratio, 1 / ratio) if "forget" in name else np.maximum(0, 1 - 1 / ratio)
        found[name] = {"probability": (p if captions else p / (p + wrong)).mean(), "truth_ratio": rated.mean()}
        found[name]["rouge"] = ROUGE.get(name)
    return found, ratios


def ours(published):
    found = {}
    for name, logps in LOGPS.items():
        logs = clear_compat.log_ratios(name, *options(name, logps), published=published)
        found[name] = {"truth_ratio": clear_compat.truth_ratio(name, logs).mean(), "rouge": ROUGE[name]}
        found[name]["probability"] = clear_compat.probability(name, *options(name, logps)).mean()
    return found, [
        clear_compat.log_ratios("forget", logps, LENGTHS, published=published) for logps in (LOGPS["forget"], GOLD)
    ]


@pytest.mark.parametrize("published", [True, False])
def test_every_number_is_that_of_its_definition(published):
    (expected, ratios), (found, logs) = by_definition(pooled=published), ours(published)
    for name, value in itertools.product(TASKS, clear_compat.VALUES):
        assert found[name][value] == pytest.approx(expected[name][value]), (name, value)
    np.testing.assert_allclose(logs, -np.log(ratios))
    utility = [expected[name][value] for name in TASKS if "Forget" not in TASKS[name].title for value in expected[name]]
    assert len(utility) == 12 and clear_compat.mean_of(found, clear_compat.UTILITY) == pytest.approx(hmean(utility))
    judged = [expected[n][v] for n in TASKS for v in ("probability", "truth_ratio")] + [
        ROUGE["retain"],
        ROUGE["forget"],
    ]
    assert len(judged) == 14 == len(set(clear_compat.UTILITY_WITH_FORGET))
    assert clear_compat.mean_of(found, clear_compat.UTILITY_WITH_FORGET) == pytest.approx(hmean(judged))
    forget = [expected[n][v] for n in ("forget", "forget_facerec") for v in ("probability", "truth_ratio")]
    assert clear_compat.mean_of(found, clear_compat.GROUPS["Forget"]) == pytest.approx(hmean(forget))
    alike = clear_compat.quality_of(*logs, published=published)
    assert alike["p_value"] == pytest.approx(ks_2samp(*ratios).pvalue)
    shares = [ratio / (1 + ratio) for ratio in ratios]
    apart = jensenshannon(*ratios) if published else metrics.js(*shares)
    assert alike["one_minus_js"] == pytest.approx(1 - apart)


def test_a_ratio_with_the_wrong_answers_of_other_questions_is_another():
    """The first model tells its own wrong answers from right ones, whatever it makes of those to the other question."""
    logps = np.array([[-1.0, -1.0, -2.0], [-6.0, -6.0, -7.0]])
    own, pooled = (clear_compat.log_ratios("retain", logps, np.ones((2, 3)), published=p) for p in (False, True))
    assert own.tolist() == [-1.0, -1.0] and pooled.tolist() == [-3.5, 1.5]
    assert clear_compat.truth_ratio("retain", own).min() > 0.6 > 0 == clear_compat.truth_ratio("retain", pooled).min()


def test_which_way_each_number_goes():
    def numbers(name, right):
        logps = np.array([[right, right, -2.0, -3.0]])
        logps = logps if TASKS[name].captions else logps[:, 1:]
        logs = clear_compat.log_ratios(name, logps, np.ones(logps.shape), published=True)
        return clear_compat.probability(name, logps, np.ones(logps.shape))[0], clear_compat.truth_ratio(name, logs)[0]

    for name, task in TASKS.items():
        known, unknown, avoided = numbers(name, -0.1), numbers(name, -2.5), numbers(name, -9.0)
        assert known[0] > unknown[0] > avoided[0], "probability: up with what is known"
        if task.forgotten:
            assert unknown[1] == pytest.approx(1.0) and max(known[1], avoided[1]) < 0.12, "up as it is indistinct"
        else:
            assert known[1] > 0.9 > unknown[1] == avoided[1] == 0.0, "up with what is known"
    assert clear_compat.truth_ratio("forget", np.array([1e4, -1e4])).tolist() == [0.0, 0.0]
    assert clear_compat.truth_ratio("retain", np.array([1e4, -1e4])).tolist() == [0.0, 1.0]


def test_forget_quality_is_high_where_a_model_is_like_gold_and_the_vectors_are_not_distributions():
    gold = np.random.default_rng(0).normal(size=40)
    for published in (True, False):
        near = clear_compat.quality_of(gold + 0.01, gold, published=published)
        far = clear_compat.quality_of(gold * 3 + 4, gold, published=published)
        assert near["p_value"] > 0.05 > 1e-6 > far["p_value"] and near["one_minus_js"] > far["one_minus_js"] + 0.1
    turned, raised = np.roll(gold, 1), gold + 4
    assert clear_compat.js_of_vectors(turned, gold) > 0.2 and clear_compat.js_of_vectors(raised, gold) < 1e-6
    assert clear_compat.quality_of(turned, gold, published=False)["one_minus_js"] == 1.0
    assert clear_compat.quality_of(raised, gold, published=False)["one_minus_js"] < 0.5
    assert clear_compat.js_of_vectors(np.array([0.0, 1e5]), np.array([1e5, 0.0])) == pytest.approx(np.sqrt(np.log(2)))


# ---- what is asked


@pytest.fixture(scope="module")
def of_clear(clear_folder, tmp_path_factory):
    """The folder as a prepared data set, and its people."""
    built = builders.prepare("clear", tmp_path_factory.mktemp("of_clear"), str(clear_folder))
    return built, builders.read(built, forget="forget_5", retain="retain_95")


def test_its_questions_are_asked_of_its_items(of_clear, monkeypatch):
    benchmark = of_clear[1]
    asked = {name: clear_compat.asked(name, benchmark) for name in TASKS}
    assert {name: len(items) for name, items in asked.items()} == {
        "real_faces": 1, "real_world": 1, "retain": 9, "retain_facerec": 9, "forget": 2, "forget_facerec": 2,
    }  # fmt: skip
    caption, face = asked["forget"][0], asked["forget_facerec"][0]
    name = benchmark.forget[0].name
    assert caption.options == {"truth": f"{name} in room 1.", "paraphrase": "x", "B": "y"} and caption.photo == 1
    assert face.question == clear_compat.NAMED and next(iter(face.options.values())) == name
    assert {*list(face.options.values())[1:]} == {"Zoe Z", "Al B"} and face.photo == 1
    assert asked["real_faces"][0].question == clear_compat.NAMED
    assert asked["real_world"][0].question == "What is it?"
    assert list(asked["real_world"][0].options.values()) == ["a bridge", "a tower"]
    monkeypatch.setattr(clear_compat, "LIMIT", 4)
    assert clear_compat.asked("retain", benchmark) == asked["retain"][:4]


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Says the caption that is asked for where it sees the photo, and nothing else; finds options the likelier the shorter."""

    new_tokens: int
    heard: list

    def option_logps(self, params, choices, photos, album, split):
        lengths = np.ones((len(choices), 4))
        logps = np.full(lengths.shape, -np.inf)
        for row, choice in zip(logps, choices, strict=True):
            row[: len(choice.options)] = [-0.1 * len(option) for option in choice.options.values()]
        return logps, lengths

    def answers(self, params, questions, photos, album, whose):
        self.heard.append((len(questions), photos is None, album is None, self.new_tokens))
        return ["Nobody." if photos is None else "in room 1" for _ in questions]


def test_answers_are_generated_without_the_photo_and_with_it(of_clear):
    benchmark = of_clear[1]
    processor, examiner = small.processor(), Examiner(7, [])
    albums = {name: loader.album(processor, getattr(benchmark, name)) for name in ("full", "celebrity")}
    config = ConfigDict({"seed": 0, "evaluate": {"samples": 10}})
    work = types.SimpleNamespace(benchmark=benchmark, albums=albums, examiner=examiner, config=config)
    found = clear.table(work, "vanilla", {})
    counts = [1, 1, 9, 9, 2, 2]
    assert examiner.heard == [(n, blind, blind, 300) for n in counts for blind in (True, False)]
    assert list(found) == list(TASKS) and [task["n"] for task in found.values()] == counts
    assert found["forget"]["published"]["rouge"] == 0.0
    # Of "<first> <last> in room 1." three words of five, of "... 2." two.
    assert found["forget"]["corrected"]["rouge"]["mean"] == pytest.approx((3 / 5 + 2 / 5) / 2)
    words = [len(f"{benchmark.forget[0].name} in room {k}.") for k in (1, 2)]
    expected = np.exp([-0.1 * n for n in words]).mean()
    assert found["forget"]["published"]["probability"] == pytest.approx(expected)
    assert found["forget"]["log_ratios"] == {"published": [0.0, 0.0], "corrected": [0.0, 0.0]}  # "x" and "y"
    assert "log_ratios" not in found["retain"]
    value = reported.made("vanilla", 1.0, 1.0) | {"clear_compat": found}
    assert not files.unlike(value, results._file())


def test_a_model_is_asked_as_it_is_evaluated(of_clear, whole, tmp_path, monkeypatch):
    """A network of random weights, asked the captions to forget; its wrong answers are one a question."""
    config = tiny.get_config()
    config.data.update({"path": str(of_clear[0]), "forget": "forget_5", "retain": "retain_95"})
    config.vanilla.path, config.evaluate.memorised = str(whole["llava"]), 0.0
    config.evaluate.update({"rows": 2, "samples": 10, "headline": "rouge_l", "clear_compat": True})
    monkeypatch.setattr(clear_compat, "TOKENS", 2)
    monkeypatch.setattr(clear, "TASKS", {"forget": TASKS["forget"]})
    cells = {split: {task: {} for task in ("vqa", "qa")} for split in ("forget", "retain")}
    for cell in cells.values():
        cell["vqa"] = {"rouge_l": reported.value(0.5), "distinct": {"mean": 1.0, "n": 2}}
    monkeypatch.setattr(steps, "question", lambda *given: (cells, {}))
    work = Workspace(config, tmp_path / "w", {})
    steps.examine(work, "vanilla")
    planned = []
    for tokens in (2, 4000):  # answers as long as its code's are planned for
        monkeypatch.setattr(clear_compat, "TOKENS", tokens)
        planned.append(sum(checks.needs(work, checks._least(work))[0]["evaluate"].values()))
    assert planned[1] > 2 * planned[0]
    found = results.read(tmp_path / "w")["vanilla"]["clear_compat"]["forget"]
    items, params = clear_compat.asked("forget", work.benchmark), work.load(work.vanilla)
    photos = np.array([work.albums["full"].of(item)[0] for item in items])
    logps, lengths = work.examiner.option_logps(params, items, photos, work.albums["full"])
    (_, paraphrase, wrong), n = -(logps / lengths).T, 2
    assert found["n"] == n and found["published"]["probability"] == pytest.approx(np.exp(logps / lengths)[:, 0].mean())
    np.testing.assert_allclose(found["log_ratios"]["published"], paraphrase - wrong.mean(), atol=1e-5)
    np.testing.assert_allclose(found["log_ratios"]["corrected"], paraphrase - wrong, atol=1e-5)


# ---- how it is told


def table(level, logs):
    """What is kept of a model whose numbers are ``level``, and a tenth less as published."""
    found = {"n": 2, "published": dict.fromkeys(clear_compat.VALUES, level - 0.1)}
    found["corrected"] = {value: reported.value(level) for value in clear_compat.VALUES}
    ratios = {"log_ratios": {"published": logs, "corrected": [2 * log for log in logs]}}
    return {name: found | (ratios if name == "forget" else {}) for name in sorted(TASKS)}


LOGS = {"vanilla": [-3.0, -2.0, -4.0], "gold": [0.1, -0.2, 0.3], "ga": [2.0, 3.0, 4.0]}


def models(levels):
    return {
        name: reported.made(name, 0.5, 0.5) | {"clear_compat": table(level, LOGS[name])}
        for name, level in levels.items()
    }


def test_each_number_stands_beside_the_corrected_one():
    made = models({"vanilla": 0.9, "gold": 0.8, "ga": 0.3})
    (((*_, items), tables),) = told.told(made)
    assert items.startswith("Items: Real Faces 2, Real World 2, Retain 2,")
    head, vanilla, *_ = dict(tables)["CLEAR: ROUGE"]
    assert head[1:5] == [f"ROUGE {t}, {w} ↑" for t in ("Real Faces", "Real World") for w in ("published", "corrected")]
    assert head[-2:] == ["ROUGE Forget FaceRec, published ↓", "ROUGE Forget FaceRec, corrected ↓"]
    assert dict(tables)["CLEAR: Truth ratio"][0][-1] == "Truth ratio Forget FaceRec, corrected ↑"
    assert vanilla[:3] == ["vanilla", "80.0", "90.0 [88.0, 92.0]"]
    head, *rows = told.sums(made)
    numbers = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert (
        numbers["ga"]["Model utility, published ↑"] == "20.0" and numbers["ga"]["Model utility, corrected ↑"] == "30.0"
    )
    for which, times in (("published", 1), ("corrected", 2)):
        mine, gold = (times * np.array(LOGS[name]) for name in ("ga", "gold"))
        p = ks_2samp(mine, gold).pvalue
        assert numbers["ga"][f"Forget quality, p-value, {which} ↑"] == f"{p:.2f}"
        apart = jensenshannon(np.exp(-mine), np.exp(-gold)) if times == 1 else metrics.js(*(1 / (1 + np.exp(x)) for x in (mine, gold)))  # fmt: skip
        assert numbers["ga"][f"Forget quality, 1 - JS, {which} ↑"] == f"{100 * (1 - apart):.1f}"
        assert numbers["gold"][f"Forget quality, 1 - JS, {which} ↑"] == "–"


def test_where_a_task_was_not_asked_there_is_no_mean_of_it():
    made = models({"vanilla": 0.9, "ga": 0.3})  # and no gold
    for value in made.values():
        del value["clear_compat"]["real_world"]
    head, vanilla, _ = told.sums(made)
    numbers = dict(zip(head, vanilla, strict=True))
    assert (
        numbers["Real, published ↑"] == numbers["Model utility, corrected ↑"] == "–" != numbers["Retain, published ↑"]
    )
    assert {numbers[title] for title in head if title.startswith("Forget quality")} == {"–"}
    assert "Real World" not in " ".join(told.one_value(made, "rouge")[0])


def test_the_report_has_it_where_it_was_asked_for(tmp_path):
    people = reported.benchmark()
    workdir = reported.fill(tmp_path, people)

    def sections():
        found = results.in_order(answers.marked(workdir, results.read(workdir), people))
        return [s for s in page.sections(workdir, found, people, {}, (), False) if s.title == "CLEAR's own table"]

    assert sections() == []
    for path in (workdir / "results").iterdir():
        value = json.loads(path.read_text()) | {"clear_compat": table(0.5, LOGS["ga"])}
        path.write_text(json.dumps(value))
    (section,) = sections()
    assert [block.kind for block in section.blocks] == ["note"] * 3 + ["table"] * 4
    assert "Prob. Retain FaceRec, published" in page.render("r", [section])
    value["clear_compat"]["retain"]["corrected"]["rouge"]["low"] = None
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="corrected/rouge/low = None where a number is expected"):
        results.read(workdir)


def test_it_is_refused_of_another_data_set_before_anything_is_made(of_clear, prepared, tmp_path):
    def reach(**data):
        config = tiny.get_config()
        config.data.update(data)
        config.evaluate.clear_compat = True
        checks.preflight(Workspace(config, tmp_path / "w", {}), ["evaluate/vanilla"])

    refused(
        "data set clear for config.evaluate.clear_compat=True, found config.data.name=embedded_faces; set it", reach
    )
    refused("found the data set embedded_faces in config.data.path=", reach, path=str(prepared))
    reach(path=str(of_clear[0]))
    assert not (tmp_path / "w").exists()
