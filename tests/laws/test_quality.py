"""What a model is summed up in, against what scipy makes of the same numbers, and how the report tells it."""

import statistics

import numpy as np
import pytest
from scipy.stats import ks_2samp

import reported
from mmu_jax import InputError, metrics, quality
from mmu_jax.report import tables

# A paraphrase that is third of four, and first of three.
LOGPS = np.array([[-4.0, -6.0, -1.0, -2.0], [-3.0, -2.0, -5.0, -np.inf]])
LENGTHS = np.array([[2.0, 3.0, 1.0, 1.0], [3.0, 2.0, 1.0, 1.0]])


def test_the_truth_ratio_is_that_of_geometric_means():
    p = np.exp(LOGPS / LENGTHS)
    wrong = [statistics.geometric_mean(p[0, [0, 1, 3]]), statistics.geometric_mean(p[1, [1, 2]])]
    found = quality.truth_ratio(LOGPS, LENGTHS, np.array([2, 0]))
    np.testing.assert_allclose(found, [wrong[0] / p[0, 2], wrong[1] / p[1, 0]])
    np.testing.assert_allclose(quality.indistinct(found), [min(r, 1 / r) for r in found])
    np.testing.assert_allclose(quality.truthful(found), [max(0.0, 1 - r) for r in found])


def test_pooled_as_in_clear_s_code_wrong_answers_of_all_questions_are_one_mean():
    """Its ratio is exp(mean of all losses of wrong answers - loss of the paraphrase): the inverse of this one."""
    losses = -LOGPS / LENGTHS
    published = np.exp(losses[[0, 0, 0, 1, 1], [0, 1, 3, 1, 2]].mean() - losses[[0, 1], [2, 0]])
    found = quality.truth_ratio(LOGPS, LENGTHS, np.array([2, 0]), pooled=True)
    np.testing.assert_allclose(found, 1 / published)
    kept = metrics.METRICS["truthful_published"].of(LOGPS, LENGTHS, np.array([2, 0]))
    np.testing.assert_allclose(kept, [max(0.0, 1 - 1 / r) for r in published])
    share = metrics.METRICS["truth_share"].of(LOGPS, LENGTHS, np.array([2, 0]))
    np.testing.assert_allclose(share, 1 / (1 + quality.truth_ratio(LOGPS, LENGTHS, np.array([2, 0]))))


def test_who_knows_is_truthful_and_who_does_not_is_indistinct():
    def ratios(paraphrase):
        return quality.truth_ratio(np.array([[paraphrase, -2.0, -3.0]]), np.ones((1, 3)), np.array([0]))

    known, unknown, avoided = ratios(-0.1), ratios(-2.5), ratios(-9.0)
    assert quality.truthful(known) > 0.9 > quality.truthful(unknown) == quality.truthful(avoided) == 0.0
    assert quality.indistinct(unknown) == pytest.approx(1.0)
    assert max(quality.indistinct(known), quality.indistinct(avoided)) < 0.1, "avoided is known as well"


@pytest.mark.parametrize("broken", [[[-1.0, np.nan]], [[-np.inf, -1.0]], [[-1.0, -np.inf]]])
def test_a_question_without_what_the_ratio_needs_is_refused(broken):
    with pytest.raises(InputError, match="a paraphrase and of at least one perturbed answer"):
        quality.truth_ratio(np.array(broken), np.ones((1, 2)), np.array([0]))


def test_forget_quality_is_high_where_a_model_is_like_gold():
    rng = np.random.default_rng(0)
    gold, alike, known = rng.beta(1, 6, 60), rng.beta(1, 6, 60), rng.beta(6, 1, 60)
    for other in (alike, known):
        assert quality.forget_quality(other, gold) == ks_2samp(other, gold).pvalue
    assert quality.forget_quality(alike, gold) > 0.05 > 1e-6 > quality.forget_quality(known, gold)


def cells(*values):
    return {name: {"mean": value} for name, value in zip(quality.USEFUL, values, strict=False)}


def test_utility_is_the_harmonic_mean_of_what_is_kept_alone():
    kept = {"retain": {"vqa": cells(0.9, 0.8, 0.7), "qa": cells(0.5)}, "celebrity": {"vqa": cells(0.2, 0.4)}}
    lost = {"forget": {"vqa": cells(0.1, 0.1, 0.1)}, "test": {"vqa": cells(0.0)}, "unseen": {"vqa": cells(0.0)}}
    found = quality.utility(kept | lost)
    assert found == {"mean": pytest.approx(statistics.harmonic_mean([0.9, 0.8, 0.7, 0.5, 0.2, 0.4]))}
    assert quality.utility(kept | {"retain_test": {"qa": cells(0.99)}})["mean"] > found["mean"], (
        "it rises with what is known"
    )
    assert quality.utility({"retain": {"vqa": cells(0.9, 0.0, 0.7)}})["mean"] == 0.0
    assert quality.utility({"retain": {"vqa": cells(0.9, 0.8)}}) is None and quality.utility(lost) is None


def test_utility_has_an_interval_over_people():
    rng = np.random.default_rng(0)
    each = {name: {f"p{i}": float(x) for i, x in enumerate(rng.uniform(0.3, 0.9, 20))} for name in quality.USEFUL}
    vqa = {name: {"mean": float(np.mean(list(values.values()))), "each": values} for name, values in each.items()}
    found = quality.utility({"retain": {"vqa": vqa}, "celebrity": {"vqa": cells(0.5)}})
    assert found.keys() == {"mean"}, "where some numbers are not known person by person there is none"
    found = quality.utility({"retain": {"vqa": vqa}}, samples=4000)
    table, draws = np.array([list(values.values()) for values in each.values()]), []
    for _ in range(4000):
        draws.append(statistics.harmonic_mean(table[:, rng.integers(0, 20, 20)].mean(axis=1)))
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(draws, [2.5, 97.5]), atol=0.005)
    assert found["low"] < found["mean"] < found["high"] and found["people"] == 20
    assert tables._percent(found).startswith(f"{100 * found['mean']:.1f} [")


def results(**models):
    """Of models made up, with the recall of ROUGE-L."""
    found = {name: reported.made(name, *rates) for name, rates in models.items()}
    for value in found.values():
        for split in value["results"].values():
            for cell in split.values():
                cell["rouge_l_recall"] = reported.value(cell["exact"]["mean"])
                cell["probability"]["items"] = np.linspace(0, cell["probability"]["mean"], 50).tolist()
    return found


def test_the_report_sums_every_model_up():
    made = results(vanilla=(0.9, 0.9), gold=(0.2, 0.9), ga=(0.21, 0.05))
    head, *rows = tables.quality_table(made)
    of = "Forget quality by p(right answer)"
    assert head == ["Model", f"{of}, Forget VQA ↑", f"{of}, Forget Test VQA ↑", "Model utility ↑"]
    told = {name: numbers for name, *numbers in rows}
    assert told["gold"][:2] == ["–", "–"] and float(told["vanilla"][0]) < 1e-6 < 0.9 < float(told["ga"][0])
    for name, numbers in told.items():
        assert float(numbers[2]) == pytest.approx(100 * quality.utility(made[name]["results"])["mean"], abs=0.051)
    assert float(told["ga"][2]) < float(told["gold"][2]) == float(told["vanilla"][2])
    alone = tables.quality_table({name: value for name, value in made.items() if name != "gold"})
    assert alone[0] == ["Model", "Model utility ↑"]
    for value in made.values():
        del value["results"]["retain"]["vqa"]["rouge_l_recall"], value["results"]["retain"]["qa"]["rouge_l_recall"]
        del (
            value["results"]["retain_test"]["vqa"]["rouge_l_recall"],
            value["results"]["retain_test"]["qa"]["rouge_l_recall"],
        )
    assert tables.quality_table(made) == [row[:3] for row in [head, *rows]], "of results made before"
    assert tables.quality_table({"vanilla": reported.made("vanilla", 0.9, 0.9)}) is None, (
        "without a recall there is none"
    )


def test_forget_quality_is_by_the_truth_ratio_where_there_is_one():
    made = results(vanilla=(0.9, 0.9), gold=(0.2, 0.9), ga=(0.2, 0.9))
    for name, value in made.items():
        share = np.linspace(0.4, 0.9 if name == "vanilla" else 0.6, 50).tolist()
        value["results"]["forget"]["vqa"]["truth_share"] = reported.value(0.5) | {"items": share}
    head, *rows = tables.quality_table(made)
    assert head[1:3] == [
        "Forget quality by truth ratio, Forget VQA ↑",
        "Forget quality by p(right answer), Forget Test VQA ↑",
    ]
    told = {name: numbers for name, *numbers in rows}
    first, gold = (made[name]["results"]["forget"]["vqa"]["truth_share"]["items"] for name in ("vanilla", "gold"))
    assert float(told["vanilla"][0]) == pytest.approx(ks_2samp(first, gold).pvalue, rel=0.5) and told["ga"][0] == "1.00"


def test_metrics_that_say_the_same_share_a_table():
    made = results(vanilla=(0.9, 0.9), ga=(0.2, 0.1))
    titles = {tuple(names): table for names, table in tables.further(made, ("exact", "mcq"))}
    assert [name for names in titles for name in names][:2] == ["rouge_l", "cloze"]
    assert ("right_share",) in titles and any({"cloze", "cloze_exact"} <= set(names) for names in titles)
    assert len(set(map(str, titles.values()))) == len(titles)
    made["ga"]["results"]["forget"]["vqa"]["cloze"] = reported.value(0.5)
    assert ("cloze",) in [tuple(names) for names, _ in tables.further(made, ("exact", "mcq"))]
