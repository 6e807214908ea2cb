"""Slices of a large tensor shared out among threads that compute alone."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread_each() -> Generator[ThreadPoolExecutor]:
    """Share slices out among threads that compute alone: threads in step wait for each other."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as workers:
            yield workers
    finally:
        torch.set_num_threads(count)
