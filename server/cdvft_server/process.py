"""What a process that computes asks of the C library and of OpenMP, before torch is loaded, and of Python's garbage
collector, once all is loaded. Knows no torch.

A forward pass takes and gives back the same few megabytes hundreds of times: by default glibc returns them to the
system each time and faults them in again, page by page. And it enters hundreds of parallel regions, between which a
helper thread had better wait awake for a moment. docs/decisions.md has the figures.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["settled_heap", "tune_process"]

# mallopt's parameters, malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
MMAP_BYTES = 32 << 20  # the most that glibc takes: larger blocks are given back at once
KEPT_BYTES = 1 << 30  # free memory that stays with the process
PAD_BYTES = 64 << 20
SETTINGS = (
    (ARENA_MAX, 1),
    (MMAP_THRESHOLD, MMAP_BYTES),
    (TRIM_THRESHOLD, KEPT_BYTES),
    (TOP_PAD, PAD_BYTES),
)
SPINS = "30000"  # a fraction of a millisecond


def tune_process() -> bool:
    """Keep freed memory, in one arena for all threads; let OpenMP's threads wait awake, but briefly. What the user has
    said by GOMP_SPINCOUNT stands. Returns whether malloc, if it is glibc's, took it all.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    accepted = [mallopt(parameter, value) for parameter, value in SETTINGS]
    return all(accepted)


@contextmanager
def settled_heap() -> Iterator[None]:
    """Inside, the garbage collector passes over what is there already: half a million objects of torch, transformers
    and the base, which a full collection walks through for a fifth of a second while every request waits."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
