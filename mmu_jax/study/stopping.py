"""SIGTERM, which a scheduler sends before it takes a machine away: a run ends in one line, and its training where it was."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mmu_jax import Stopped

AGAIN = 0.1  # seconds until a signal that was heard in a destructor, whose exceptions Python drops, is sent once more


class Stopping:
    """Whether this process was asked to end, and what it does then.

    Attributes:
      doing: the stage that is being made, for the line.
      asked: whether SIGTERM came.
    """

    def __init__(self, doing: str = ""):
        self.doing, self.asked, self._waits = doing, False, False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While in it, SIGTERM ends what is done at once, by raising ``Stopped``; what was there before hears it again afterwards.

        Outside the main thread, where Python delivers no signal, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.asked = False  # of an earlier run in this process
        before, told = signal.signal(signal.SIGTERM, self._hear), sys.unraisablehook
        sys.unraisablehook = lambda dropped: _again(dropped, told)
        try:
            yield
        finally:
            sys.unraisablehook = told
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: of no Python

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While in it, SIGTERM is only noted in ``asked``: for a loop that looks there, and keeps its state before it ends."""
        self._waits = True
        try:
            yield
        except Stopped as stopped:
            raise Stopped(f"in {self.doing} {stopped.where}") from stopped
        finally:
            self._waits = False
        if self.asked:  # after the last look
            self._end()

    def _hear(self, number: int, frame: object) -> None:
        self.asked = True
        if not self._waits:
            self._end()

    def _end(self) -> NoReturn:
        raise Stopped(f"in {self.doing}" if self.doing else "")


def _again(dropped: Any, told: Callable[[Any], Any]) -> None:
    """``sys.unraisablehook``: has SIGTERM come again where the exception that it raised was dropped; else what was there before."""
    if not isinstance(dropped.exc_value, Stopped):
        told(dropped)
        return
    timer = threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
