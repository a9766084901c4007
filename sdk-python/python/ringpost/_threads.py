"""A few threads for handlers that are plain functions.

Not `concurrent.futures`: the interpreter waits for its threads when it ends, however long a handler takes. These are
daemons, so that Ctrl-C ends a program at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Job: TypeAlias = Callable[[], None]


class Threads:
    """At most so many threads, begun as they are needed. Jobs must not raise."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0

    def submit(self, job: Job) -> None:
        """Runs a job, as soon as a thread is free."""
        with self._lock:
            begin = self._idle <= self._jobs.qsize() and self._threads < self._limit
            self._threads += begin
        self._jobs.put(job)
        if begin:
            threading.Thread(target=self._work, name="ringpost-handler", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, each behind the job that it is at."""
        with self._lock:
            threads, self._limit = self._threads, 0
        for _ in range(threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            if job is None:
                return
            job()
