"""The sweep and the bench as a user starts them: a mistake is one line and exit code 2, before anything is made."""

import os
import subprocess
import sys

import pytest

from runs import ROOT

MISTAKES = {
    "bench": [
        ("--only=nonsense", "expected --only among saliency"),
        ("saliency", "which nothing reads; write --saliency"),
        ("--batches=0", "not a positive integer"),
        ("--config=configs/tiny.py", "flags that this program reads, found --config"),
        ("--gib=nan", "expected a number in --gib, found nan"),
        ("--gib=inf", "not a number in the range"),
        ("--read=/nosuch", "expected a checkpoint directory with config.json, found none in /nosuch"),
    ],
    "sweep": [
        ("--methods=nonsense", "config.unlearn.methods among retain_ft"),
        ("--seeds=", "a seed and a rate at least"),
        ("--seeds=-1", "different whole numbers"),
        ("--rates=1e-3,nan", "different finite numbers above 0 in --rates"),
        ("--retain_rates=x", "expected numbers in --retain_rates"),
        ("--stages=data", "Unknown command line flag 'stages'"),
        ("--config.seed=7", "config.seed (--seeds names them); remove it"),
        ("--config.gold=False", "config.gold (a sweep makes none)"),
        ("--config.unlearn.learning_rate.ga=1e-3", "--rates is the grid of every method"),
    ],
}
# Every mistake of a program in one process, so that it starts once.
CODE = """
import sys
from absl import flags
from experiments import {name} as program, command
for word in {words!r}:
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    sys.argv = [{name!r}, *{common!r}, word]
    try:
        program.command.parse(sys.argv) if {common!r} else command.parse_without_config(sys.argv)
        program.main(sys.argv)
    except SystemExit as ended:
        print("ended with", ended.code, file=sys.stderr)
"""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path):
    common = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'w'}"] if name == "sweep" else []
    code = CODE.format(name=name, words=[word for word, _ in MISTAKES[name]], common=common)
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "ended", "Traceback"))]
    assert len(lines) == 2 * len(MISTAKES[name]), done.stderr[-3000:]
    for (_, words), said, ended in zip(MISTAKES[name], lines[::2], lines[1::2], strict=True):
        assert words in said and ended == "ended with 2"
    assert not (tmp_path / "w").exists()


FLAGS = {
    "run": {"stages", "seeds"},
    "compare": {"out", "against"},
    "sweep": {"seeds", "rates", "retain_rates", "methods"},
    "bench": {"only", "size", "rounds", "batches", "rows", "gib", "json", "profile"},
}


@pytest.mark.parametrize("name", FLAGS)
def test_help_names_every_flag(name):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr
    told = {line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  --")}
    wanted = FLAGS[name] | (set() if name in ("bench", "compare") else {"config", "workdir", "config.KEY"})
    assert {f"--{flag}" for flag in wanted} <= told


def test_a_finished_run_is_compared(whole, tmp_path):
    words = [sys.executable, "-m", "experiments.compare", str(whole[0]), f"--out={tmp_path}", "--against=mmunlearner"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert "3 methods over 1 run (seed 0; group 0), compared with mmunlearner." in done.stdout
    text = (tmp_path / "compare.md").read_text()
    assert "Retain Test VQA ↑" in text and "person by person" not in text  # the files have it
    assert {path.name for path in tmp_path.iterdir()} == {
        "figures",
        *(f"compare.{k}" for k in ("html", "md", "csv", "tex")),
    }


def test_a_sweep_measures_anew_what_another_config_made(tmp_path):
    from configs import tiny
    from experiments import sweep
    from mmu_jax.study.study import Study

    config = tiny.get_config()
    config.unlearn.methods = ("npo", "mmunlearner")
    known = Study(config, tmp_path / "w")
    config = config.copy_and_resolve_references()
    config.unlearn.epochs = 7.0
    other = Study(config, tmp_path / "w")
    for name in ("npo", "mmunlearner"):
        assert sweep.made(known, name) != sweep.made(other, name)
    config = config.copy_and_resolve_references()
    config.unlearn.learning_rate.npo, config.unlearn.retain_rate.npo = 0.5, 0.5  # the rates are swept
    assert sweep.made(Study(config, tmp_path / "w"), "npo") == sweep.made(other, "npo")
