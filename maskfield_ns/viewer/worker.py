"""One background thread for what a panel's buttons start: in order, and whatever goes wrong is said."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable

from nerfstudio.utils.rich_utils import CONSOLE

from maskfield_ns.errors import MaskfieldError


class Worker:
    """Runs jobs one after another on a thread of its own.

    Args:
        say: called from that thread with one line of plain text for the user when a job fails.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="maskfield-session").start()

    def later(self, job: Callable[[], None]) -> None:
        """Queues a job."""
        self._jobs.put(job)

    def settle(self, patience: float = 60.0) -> None:
        """Waits until everything queued so far is done.

        Raises:
            TimeoutError: it is not within ``patience`` seconds.
        """
        done = threading.Event()
        self.later(done.set)
        if not done.wait(patience):
            raise TimeoutError("the session is still busy")

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except MaskfieldError as error:
                self._say(str(error))
            except Exception as error:
                CONSOLE.print(traceback.format_exc(), markup=False)
                self._say(f"That did not work: {type(error).__name__}: {error}")
