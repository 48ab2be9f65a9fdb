"""Peak memory of a call, counted from the allocator's own events, and where the CPU's memory comes from.

What a fresh tensor costs on the CPU depends on the history of the process. glibc hands large blocks back to the
system and gets new pages for the next one, each of which faults at its first touch; but once smaller blocks have
left a hole in the heap that is large enough, it reuses that without any fault. A loss made of twenty temporaries
is three to four times as fast then. So a run pins one of the two states, and says which.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler announces each of its stages on stderr, in the middle of the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

STATES = ("fresh", "reused")

# From malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGE = 1 << 20
_NEVER = 2**31 - 1
_RESERVE = 4 << 30
_guards: list[torch.Tensor] = []


def pin(state: str) -> bool:
    """Makes every tensor above 1 MiB come from fresh pages, or from the heap; False where that is not glibc's.

    To be called before anything large is allocated: a hole in the heap would be filled first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if state == "fresh":
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE))
    if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        return False
    # One hole that has room for everything, below a block that stays: an aligned tensor does not fit into the hole
    # that its like has left, so that a heap without reserve would grow and fault for a long time.
    reserve = torch.zeros(min(_RESERVE, _available() // 2), dtype=torch.uint8)
    _guards.append(torch.zeros(_LARGE, dtype=torch.uint8))
    del reserve
    return True


def _available() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most memory held at any time during the call beyond what was held before, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        # What was asked for: the block that the allocator has at hand may be up to a megabyte larger.
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = call()
    del result
    # The profiler's public summaries net allocations against frees; only the raw events have both.
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
