"""A study in a notebook: it is what was judged, and what it refused once it refuses again."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from mmu_jax import InputError, metrics, questions
from mmu_jax.data import IMAGE, text
from mmu_jax.methods import METHODS
from mmu_jax.study import checks, stages
from mmu_jax.study.study import Study
from runs import small_config


def test_a_study_is_of_the_config_that_was_judged(tmp_path):
    config = small_config()
    study = Study(config, tmp_path / "w")
    config.seed, config.unlearn.rows = 7, -1
    assert (study.work.config.seed, study.work.config.unlearn.rows) == (0, 64)


def test_a_headline_is_a_share_of_what_is_known(tmp_path, monkeypatch):
    row = metrics.Metric("NLL of the truth", "generation", metrics.exact, up=False, form="{:.2f}", scale=1)
    monkeypatch.setitem(metrics.METRICS, "nll", row)
    monkeypatch.setitem(metrics.METRICS, "word_f1", metrics.Metric("Word F1", "generation", metrics.exact))
    config = small_config()
    for headline in ("rouge_l", "word_f1"):
        config.evaluate.headline = headline
        Study(config, tmp_path / "w")
    config.evaluate.headline = "nll"
    with pytest.raises(InputError, match="config.evaluate.headline"):
        Study(config, tmp_path / "w")


def test_the_plan_is_that_of_the_methods_in_any_order_and_of_the_longest_question(tmp_path):
    config, plans = small_config(), []
    config.saliency.rows, config.evaluate.letters = 4, True
    Study(config, tmp_path / "w").run(["data", "base"])
    for order in (1, -1):  # one scores examples, the other batches
        config.unlearn.methods = ("mmunlearner", "mmunlearner_official")[::order]
        work = Study(config, tmp_path / "w").work
        plans.append(checks.needs(work, {"tokens": 32, "patches": 0}, {"tokens": 80, "patches": 0})[0])
    assert plans[0] == plans[1]
    short = checks.needs(work, {"tokens": 32, "patches": 0})[0]["evaluate"]["cache"]
    assert plans[0]["evaluate"]["cache"] * (32 + 3) == short * (80 + 3)  # beside three new tokens
    prompts = questions.Prompts(**config.evaluate.prompts)
    said = [prompts.asked_letter(c) for p in work.benchmark.full for c in p.choices if c.kind == IMAGE]
    longest = text.encode_prompts(work.processor, said, 1).lengths(4).max()
    assert checks._asked(work)["tokens"] >= longest > work.streams(64)["forget"].largest["tokens"]
    config.evaluate.shots = 2
    shown = Study(config, tmp_path / "w").work
    assert len(shown.prompts.shots) == 3 and shown.examiner.prompts == shown.prompts
    assert checks._asked(shown)["tokens"] > checks._asked(work)["tokens"]
    for step in (0, 5):
        own, refused = (work.stream(name, 16).batch(step) for name in ("forget", "refusal"))
        for key in ("row", "person", "pixels"):  # a refusal stands beside the answer that it is preferred to
            np.testing.assert_array_equal(own[key], refused[key])
    silent = [dataclasses.replace(p, generation=(), cloze=()) for p in work.benchmark.full]
    work.benchmark = dataclasses.replace(work.benchmark, full=tuple(silent), test=(), retain_test=(), unseen=())
    work.config.evaluate.letters = False
    assert checks._asked(work) is None  # options alone are ranked


def test_who_asks_by_another_seed_asks_again(tmp_path):
    """Of a vanilla model that is given the seed draws what stands before a question, and the people of an interval."""
    config = small_config()
    before = Study(config, tmp_path / "w").stages.table["evaluate/vanilla"].reads
    config.seed = 5
    assert Study(config, tmp_path / "w").stages.table["evaluate/vanilla"].reads == before | {"seed": 5}


def test_a_mended_citation_makes_the_report_again_and_nothing_else(tmp_path, monkeypatch):
    def prints():
        found = Study(small_config(), tmp_path / "w").stages
        return {name: found.fingerprint(name) for name in found.table}

    before = prints()
    monkeypatch.setitem(METHODS, "ga", dataclasses.replace(METHODS["ga"], source="elsewhere"))
    after = prints()
    assert {name for name in after if after[name] != before[name]} == {"report"}


def test_a_data_set_that_is_refused_is_refused_in_the_same_words(tmp_path):
    config = small_config()
    config.data.forget = "forget_5"
    study, said = Study(config, tmp_path / "w"), []
    for _ in range(2):
        with pytest.raises(InputError) as refused:
            study.run(["data"])
        said.append(str(refused.value))
    assert "'forget_5'" in said[0] and said[0] == said[1]


def test_a_plan_that_is_refused_is_refused_again_and_what_was_looked_at_stays(tmp_path):
    config = small_config()
    config.memory.limit_gib = 0.001
    study = Study(config, tmp_path / "w")
    assert len(study.work.benchmark.forget) == 10  # before the stage that prepares it
    study.run(["data", "base"])
    assert list((tmp_path / "w" / "data").rglob("dataset_info.json")) and len(study.work.benchmark.forget) == 10
    for _ in range(2):
        with pytest.raises(InputError, match="fit into 1.0 MiB per device"):
            checks.memory_plan(study.work)


def test_programs_are_kept_in_the_workdir_of_their_run_and_in_no_other(tmp_path, monkeypatch):
    kept = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.3}
    before = {name: getattr(jax.config, name) for name in kept}
    seen = []

    def look():
        seen.append(jax.config.jax_compilation_cache_dir)

    try:
        for name, value in kept.items():
            jax.config.update(name, value)
        for name in ("a", "b"):
            stages.Stages(tmp_path / name, [stages.Stage("one", {}, (), look)]).run([])
        assert seen == [os.fspath(tmp_path / name / "compiled") for name in ("a", "b")]
        assert {name: getattr(jax.config, name) for name in kept} == kept
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        stages.compilation_cache.reset_cache()
