"""Ends of a command that are nobody's fault: Ctrl-C and a reader that has gone (``| head``). No call stack for them.

Imported before anything that takes time, so that Ctrl-C is quiet while the rest is imported and arguments are parsed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import TracebackType

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
NO_READER = 141
"""Exit code when nobody reads the output any more, as shells have it."""


def ends_quietly(error: BaseException) -> bool:
    """Says "interrupted", or closes output that nobody reads; False for any other error."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return True
    if isinstance(error, BrokenPipeError):
        # Python would flush once more at its end, and fail once more.
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(silence, stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue
        return True
    return False


def install() -> None:
    """Lets uncaught errors of these kinds end the process without a call stack; all others go to the hook before."""
    previous = sys.excepthook
    if getattr(previous, "_is_maskfield_quiet", False):
        return

    interrupted: list[int] = []

    def note(number: int, frame: object) -> None:
        # A library that is being imported may swallow the exception, and then fails for want of what it has not got.
        interrupted.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, note)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not ends_quietly(KeyboardInterrupt() if interrupted else error):
            previous(kind, error, trace)

    hook._is_maskfield_quiet = True  # type: ignore[attr-defined]
    sys.excepthook = hook
