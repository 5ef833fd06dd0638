"""The command line in process: what a user types wrong, and what a file system refuses, is one line and exit code 2."""

import errno
import io
import os
import pathlib
import sys

import pytest

from experiments import command, run
from mmu_jax import InputError, hub


def refused(capsys, *words):
    """One line on stderr that says it."""
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and all(word in said[0] for word in words), said


WRONG = {
    "no config": ([], ["--config=configs/NAME.py"]),
    "empty": (["--config="], ["config file"]),
    "a table": (
        ["--config=configs/tiny.py", "--config.unlearn.retain_rate=1e-4"],
        ["'1e-4' as a ConfigDict", "set one of them, --config.unlearn.retain_rate.NAME=VALUE"],
    ),
    "no file": (["--config=configs/none.py"], ["configs/none.py"]),
    "a folder": (["--config=configs"], ["found no configs"]),
    "no Python": (["--config=README.md"], ["README.md"]),
    "two words, no file": (["--config", "configs/none.py"], ["configs/none.py"]),
    "unknown flag": (["--config=configs/tiny.py", "--confg=3"], ["confg", "config"]),
    "unknown key": (["--config=configs/tiny.py", "--config.unlearn.epoch=2"], ["epoch"]),
    "unknown section": (["--config=configs/tiny.py", "--config.nope.x=1"], ["nope"]),
    "no number": (["--config=configs/tiny.py", "--config.seed=abc"], ["config.seed", "abc"]),
    "a fraction for a count": (["--config=configs/tiny.py", "--config.seed=1.5"], ["config.seed", "1.5"]),
    "a number for a section": (["--config=configs/tiny.py", "--config.unlearn=1"], ["config.unlearn"]),
    "no place in a tuple": (["--config=configs/tiny.py", "--config.data.tokens[0]=3"], ["configs/tiny.py"]),
    "no value": (["--config=configs/tiny.py", "--config.seed"], ["config.seed"]),
    "a word that is no flag": (["--config=configs/tiny.py", "config.seed=7"], ["'config.seed=7'", "--config.seed=7"]),
    "words": (["--config=configs/tiny.py", "foo", "bar"], ["'foo', 'bar'", "nothing reads"]),
    "an argument twice": (["--config=configs/llava.py:split=5,split=10"], ["split twice"]),
    "argument": (["--config=configs/llava.py:benchmark=none"], ["benchmark among faces, mllmu", "'none'"]),
    "argument that a config does not have": (["--config=configs/tiny.py:lora=8"], ["lora=8", "benchmark"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_on_the_command_line(what, typed, capsys):
    words, named = WRONG[what]
    with pytest.raises(SystemExit) as ended:
        typed(*words)
    assert ended.value.code == 2
    refused(capsys, *named)


def test_an_argument_of_a_config_that_takes_none(typed, capsys, tmp_path):
    (tmp_path / "c.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(SystemExit):
        typed(f"--config={tmp_path / 'c.py'}:lora=8")
    refused(capsys, "lora=8", "get_config")


FILES = {
    "its own ValueError": (
        "def get_config():\n    raise ValueError('expected sun, found rain; wait')",
        ["expected sun, found rain; wait"],
    ),
    "broken": ("def get_config(:\n", ["expected Python"]),
    "no function": ("x = 1", ["get_config"]),
    "a missing module": ("import nonsuch", ["nonsuch", "install"]),
    "a missing name": ("from configs import commn", ["commn", "mine.py"]),
    "a key of another type": (
        "from configs import common\ndef get_config():\n    c = common.base()\n    c.evaluate.prompts = 3\n    return c",
        ["mine.py", "prompts"],
    ),
    "a key misspelt": (
        "from configs import tiny\ndef get_config():\n    c = tiny.get_config().lock()\n    c.unlern = 3\n    return c",
        ["mine.py", "unlern"],
    ),
    "the end of the program": ("import sys\nsys.exit(0)", ["ends the program"]),
    "the end of the program, later": ("import sys\ndef get_config():\n    sys.exit(0)", ["ends the program"]),
    "a plain dict": ("def get_config():\n    return {}", ["ConfigDict", "dict"]),
}


@pytest.mark.parametrize("what", FILES)
def test_a_config_file_that_is_none(what, tmp_path, typed, capsys):
    text, named = FILES[what]
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SystemExit):
        typed(f"--config={tmp_path / 'mine.py'}")
    refused(capsys, *named)


def test_a_fault_of_the_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['a']")
    with pytest.raises(KeyError):
        command.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull", "--help=true"])
def test_help_is_what_it_does_and_its_flags(word, typed, capsys):
    for words in ([word], ["--config=configs/tiny.py", word]):
        with pytest.raises(SystemExit) as ended:
            typed(*words)
        said = capsys.readouterr()
        assert ended.value.code == 0 and not said.err
        assert "--workdir" in said.out and "--config.KEY" in said.out


def test_what_was_given_is_known(typed):
    typed("--config=configs/tiny.py", "--config.seed=3", "--config.data.source=/photos")
    assert command.given() == {"seed": 3, "data.source": "/photos"} and command.CONFIG.value.seed == 3
    assert command.config_name() == "tiny"


def test_a_file_system_that_refuses_is_one_line_and_a_fault_of_ours_is_not(capsys):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/model.safetensors")

    with pytest.raises(SystemExit) as ended:
        command.spoken(full)
    assert ended.value.code == 2
    refused(capsys, "/disk/model.safetensors", "No space left")

    def full_without_a_name():  # as of a file that is open
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit):
        command.spoken(full_without_a_name)
    refused(capsys, "the workdir", "No space left")
    with pytest.raises(ZeroDivisionError):
        command.spoken(lambda: 1 / 0)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command.spoken(interrupted)
    assert ended.value.code == 130 and "resumes from here" in capsys.readouterr().err


def test_a_terminal_without_an_arrow_gets_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    command.spoken(lambda: print("Retain VQA ↑ ä"))
    assert written.getvalue() == b"Retain VQA ? ?\n"


@pytest.mark.parametrize("config", ["llava", "qwen2_vl"])
def test_the_mission_s_commands_without_a_network(config, typed, tmp_path, capsys, monkeypatch):
    """One line that says which folders to give, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    here = str(pathlib.Path(__file__).parents[2])
    typed(f"--config={here}/configs/{config}.py")
    with pytest.raises(SystemExit) as ended:
        command.spoken(run.run)
    assert ended.value.code == 2
    ids = {"llava": "llava-hf/llava-1.5-7b-hf", "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct"}
    refused(
        capsys,
        ids[config],
        "--config.model.path=FOLDER",
        "MLLMMU/MLLMU-Bench",
        "--config.data.source=FOLDER",
        "configs/tiny.py",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["", "x" * 5000, "a/b/c", "/no/such/folder", "org/na me", "file"])
def test_no_folder_and_no_hub_id(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"config\.model\.path"):
        hub.fetch(where or "data/../file", "config.model.path")
