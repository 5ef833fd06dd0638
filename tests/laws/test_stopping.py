"""SIGTERM: one line and exit code 143; a loop that looks ends where it can; nobody else's handler is lost."""

import os
import signal
import sys
import threading
import time

import pytest

from experiments import command
from mmu_jax import Stopped
from mmu_jax.study import stages
from mmu_jax.study.stopping import Stopping


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def theirs():
    """A handler of somebody else's, which must be there again afterwards."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_it_ends_what_is_done_at_once_and_the_handler_before_is_there_again(theirs):
    with (
        pytest.raises(Stopped, match="stopped by SIGTERM in evaluate/ga; the same command resumes"),
        Stopping("evaluate/ga").listening(),
    ):
        terminate()
        raise AssertionError("it went on")
    terminate()
    assert theirs == [True]


def test_what_a_destructor_heard_is_heard_again(theirs, capsys):
    """Python drops what is raised in one, and would print it."""

    class Held:
        def __del__(self):
            terminate()
            time.sleep(0)

    before = sys.unraisablehook
    with pytest.raises(Stopped, match="in data;"), Stopping("data").listening():
        Held()
        time.sleep(10)
        raise AssertionError("it went on")
    assert theirs == [] and sys.unraisablehook is before and capsys.readouterr() == ("", "")


def test_what_else_is_dropped_is_told_as_before(monkeypatch):
    class Held:
        def __del__(self):
            raise ValueError("of its own")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(str(dropped.exc_value)))
    with Stopping("data").listening():
        Held()
    assert told == ["of its own"]


def test_a_loop_that_waits_is_told_and_says_where_it_ended(theirs):
    stopping, done = Stopping("unlearn/ga"), []
    with (
        pytest.raises(Stopped, match="in unlearn/ga after iteration 3 of 9;") as end,
        stopping.listening(),
        stopping.waiting(),
    ):
        for i in range(9):
            if i == 2:
                terminate()
            done.append(i)
            if stopping.asked:
                raise Stopped(f"after iteration {i + 1} of 9")
    assert done == [0, 1, 2] and end.value.code == 143 and theirs == []


def test_what_comes_after_the_last_look_is_not_lost():
    stopping = Stopping("unlearn/ga")
    with pytest.raises(Stopped, match="in unlearn/ga;"), stopping.listening():
        with stopping.waiting():
            terminate()
        raise AssertionError("it went on")


def test_outside_the_main_thread_no_handler_is_touched(theirs):
    found = []

    def look():
        with Stopping().listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_stage_that_is_stopped_is_named_and_made_by_the_same_call(tmp_path, theirs):
    made = []

    def make():
        made.append(1)
        if len(made) == 1:
            terminate()
        made.append(2)

    def table():
        return stages.Stages(tmp_path / "w", [stages.Stage("one", {}, (), make)])

    with pytest.raises(Stopped, match="stopped by SIGTERM in one;"):
        table().run([])
    assert table().record("one")["status"] == "started" and theirs == []
    table().run([])
    assert made == [1, 1, 2] and table().done("one")


@pytest.mark.parametrize("where", ["before", "after iteration 3 of 9"])
def test_a_program_ends_with_a_line_and_143(where, capsys, theirs):
    def program():
        if where == "before":
            terminate()
        raise Stopped(f"in unlearn/ga {where}")

    with pytest.raises(SystemExit) as end:
        command.spoken(program)
    said = "" if where == "before" else " in unlearn/ga after iteration 3 of 9"
    assert end.value.code == 143 and capsys.readouterr().err == f"stopped by SIGTERM{said}; the same command resumes\n"
    assert theirs == []
