"""An interruption is Ctrl-C, or a signal to end: what was finished is kept, and the run is noted.

Contents: `interruptible`.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn

ENDING = ("SIGTERM", "SIGHUP")
"""Signals that schedulers and closing terminals send, where the system has them."""


@contextmanager
def interruptible() -> Generator[None]:
    """Let a signal to end raise `KeyboardInterrupt`, with its name, while the block runs.

    A handler that is there already stays, as does a signal that is ignored (`nohup`). Only the main
    thread can handle signals; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    known = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    taken = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
