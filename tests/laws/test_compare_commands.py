"""Several seeds and the comparison of runs as a user types them, with studies that are there at once."""

import json
import pathlib
import re
import subprocess
import types

import pytest

from experiments import command, compare, run
from fabricated import LEVELS, fabricate
from mmu_jax import InputError

ROOT = pathlib.Path(__file__).parents[2]


class Fabricated:
    """Stands for a study: what it would find is there at once."""

    def __init__(self, config, workdir, given):
        self.seed, self.group = config.seed, config.data.group
        self.work = types.SimpleNamespace(workdir=pathlib.Path(workdir))

    def run(self, only):
        if not only:
            fabricate(self.work.workdir, LEVELS | {"grad_diff": 0.5}, seed=self.seed, group=self.group)

    def summary(self):
        return f"seed {self.seed} is told of"


@pytest.fixture
def started(typed, monkeypatch, tmp_path):
    """``started('run', ...)`` runs a program in an empty folder, without its studies."""
    monkeypatch.setattr(run, "Study", Fabricated)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def start(program, *words):
        if program == "run":
            typed(*words)
            run.run()
        else:
            compare.main(typed(*words, how=command.parse_with_words))

    return start


def test_several_seeds_are_a_run_each_and_compared(started, capsys):
    started("run", "--config=configs/tiny.py", "--workdir=w", "--seeds=2,0")
    said = capsys.readouterr().out
    assert "seed 2\nseed 2 is told of" in said and said.splitlines()[-1] == "comparison: w/compare.html"
    assert "4 methods over 2 runs (seeds 0, 2; group 0), compared with projected." in said
    assert json.loads(pathlib.Path("w/seed-2/results/ga.json").read_text())["config"]["seed"] == 2
    started("run", "--config=configs/tiny.py", "--workdir=v", "--seeds=1", "--stages=data")
    assert not pathlib.Path("v/compare.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds="], "a seed at least"),
        (["--seeds=1,x"], "numbers in --seeds, found '1,x'"),
        (["--seeds=1,1"], "different whole numbers"),
        (["--seeds=1", "--config.seed=2"], "--seeds or --config.seed, found both"),
    ],
)
def test_seeds_that_are_none_are_refused(words, message, started):
    with pytest.raises(InputError, match=message):
        started("run", "--config=configs/tiny.py", "--workdir=w", *words)
    assert not pathlib.Path("w").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir=w", "a"], "found --workdir"),
        (["--seeds=1"], "found --seeds"),
        (["a", "--nope"], "nope"),
        ([], "at least one"),
    ],
)
def test_a_mistake_to_the_comparison_is_one_line(words, message, started, capsys):
    with pytest.raises(SystemExit) as ended:
        started("compare", *words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1 and message in said


def test_the_commands_of_the_page_run_as_printed(started):
    """What a shell makes of them, with studies that are there at once."""
    page = (ROOT / "docs" / "compare.md").read_text()
    script = 'python() { printf "%s\\n" "$*"; }\n' + "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    lines = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        flag, module, *words = line.split()
        assert flag == "-m"
        started(module.removeprefix("experiments."), *words)
    assert all(pathlib.Path(folder, "compare.html").exists() for folder in ("runs/seeds", "runs/groups"))
    assert "grad_diff is" in pathlib.Path("runs/groups/compare.md").read_text()
