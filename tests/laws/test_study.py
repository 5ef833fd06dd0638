"""A study in a notebook: it is what was judged, and what it refused once it refuses again."""

import os

import jax
import pytest

from mmu_jax import InputError
from mmu_jax.study import checks, stages
from mmu_jax.study.study import Study
from runs import small_config


def test_a_study_is_of_the_config_that_was_judged(tmp_path):
    config = small_config()
    study = Study(config, tmp_path / "w")
    config.seed, config.unlearn.rows = 7, -1
    assert (study.work.config.seed, study.work.config.unlearn.rows) == (0, 64)


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
