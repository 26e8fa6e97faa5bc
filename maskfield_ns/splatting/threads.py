"""Running a kernel on as many threads as torch uses.

Kernels take their work from a shared atomic counter, piece by piece, and a piece never depends on who works on it, so
results do not depend on the number of threads. Threads are Python's own and hold no GIL inside a kernel: unlike
numba's threading layers they are safe beside a viewer thread, and unlike OpenMP's they survive a fork.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            _pool = ThreadPoolExecutor(size, thread_name_prefix="splatting")  # an outgrown pool ends when idle
            _pool_size = size
        return _pool


def _forget_pool() -> None:
    """In a forked child the pool's threads do not exist."""
    global _pool, _pool_size, _lock
    _lock = threading.Lock()
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., Any], pieces: int, *args: Any) -> None:
    """Call ``kernel(counter, pieces, *args)`` on up to ``torch.get_num_threads()`` threads, this one included.

    The kernel must take piece numbers below `pieces` from `counter` until none is left.
    """
    counter = np.zeros(1, np.int64)
    helpers = min(torch.get_num_threads(), pieces) - 1
    if helpers <= 0:
        kernel(counter, pieces, *args)
        return
    if not getattr(kernel, "signatures", True):
        # compile (or load) once, with no work to take, before the others start
        kernel(np.full(1, pieces, np.int64), pieces, *args)
    pool = _executor(helpers)
    futures = [pool.submit(kernel, counter, pieces, *args) for _ in range(helpers)]
    try:
        kernel(counter, pieces, *args)
    finally:
        for future in futures:
            if not future.cancel():  # not started: this thread has already done its share
                future.result()
