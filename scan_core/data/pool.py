"""A pool of decoding processes that end with their parent, are ended if they do not come back, and share memory."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from scan_core.data.workers import Shared, join

SECONDS_BETWEEN_LOOKS = 0.5
PR_SET_PDEATHSIG = 1  # prctl(2)

Result = TypeVar("Result")


class Stuck(BrokenProcessPool):
    """The processes were ended, because one of them did not come back from an image."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


class Pool(ProcessPoolExecutor):
    """Worker processes that share ``Shared``."""

    def __init__(self, workers: int) -> None:
        # A forked worker starts at once, because all its imports are done. Outside Linux, forking is unsafe in a
        # process that uses system frameworks.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.shared = Shared(context, workers)
        super().__init__(workers, context, _start_worker, (os.getpid(), self.shared))

    def wait(self, piece: int, future: Future[Result]) -> Result:
        """The result of ``future``. Raises ``Stuck`` if an image of ``piece`` takes too long, and what it raised."""
        while not wait([future], timeout=SECONDS_BETWEEN_LOOKS).done:
            if (position := self.shared.stuck(piece)) is not None:
                self.kill()
                self.shutdown(wait=True, cancel_futures=True)
                raise Stuck(position)
        return future.result()

    def kill(self) -> None:
        """Ends the workers, also one that is stopped or in an endless loop."""
        for process in list((self._processes or {}).values()):
            process.kill()


def _start_worker(parent: int, shared: Shared) -> None:
    join(shared)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.set_threshold(50_000)  # decoding makes many objects and few cycles: the default threshold costs some percent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, in one line
    if sys.platform == "linux":
        # Without a parent a worker would wait for ever, and block the next run, because a fork holds its locks.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders' libraries write there what the findings say
