"""The emulation notices what is wrong with a kernel: faults planted into a copy of the real ones, each a single change
of their text. Faults in toy kernels are in tests/simt/test_simt.cpp; every barrier: tests/simt/mutants.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from simt import build, mutants
from simt.emulation import Emulation


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    source: str = "strided.cu"  # the one that is compiled with it
    engine: str = "softmax strided, few classes"  # that runs, of cases.ENGINES or mutants.HARDEST


FAULTS = {
    "no barrier before a block's sum": Fault("reduce.h", "  __syncthreads();\n", ""),
    "no barrier in a warp before its bad label": Fault("reduce.h", "  __syncwarp();\n", ""),
    "a sum over half of the lanes": Fault("reduce.h", "distance = kWarp / 2;", "distance = kWarp / 4;"),
    "a swapped shuffle": Fault(
        "strided.h",
        "__shfl_xor_sync(kAllLanes, sum, distance)",
        "__shfl_xor_sync(kAllLanes, sum, distance ^ 1)",
        engine="softmax strided",
    ),
    "one position too many": Fault("strided.h", "position < a.count", "position <= a.count"),
    "a stride that is off by one": Fault(
        "strided.h", "load(logits + c * a.class_stride[kLogits])", "load(logits + c * (a.class_stride[kLogits] + 1))"
    ),
    "a label that is not checked": Fault("labels.h", "rule.valid(label) ? ", "true ? "),
    "one block's share too many": Fault("scan.cu", "b < task.blocks;", "b <= task.blocks;", "scan.cu"),
    "the last positions of a plane left out": Fault(
        "places.h", "(left + 31) / 32", "left / 32", "columns.cu", "softmax odd columns"
    ),
    "no barrier before the shares of other warps": Fault(
        "columns.h",
        "    __syncthreads();\n    // Each position by one",
        "    // Each position by one",
        "columns.cu",
        "softmax columns over warps",
    ),
    "rows taken before they have come": Fault(
        "rows_staged.h", "    wait_for_copies();\n    __syncthreads();\n", "", "rows.cu", "softmax rows in chunks"
    ),
    "the class on top among the others": Fault(
        "soft.h", "others += on_top ? Real(0) : ", "others += false ? Real(0) : ", engine="softmax soft, held"
    ),
    "a lane's last class left out": Fault(
        "soft.h",
        "(a.classes - lane + a.lanes - 1) / a.lanes",
        "(a.classes - lane) / a.lanes",
        engine="softmax soft, held",
    ),
    "one of the equal losses too many": Fault(
        "select.cu", "here == key && i + j < limit", "here == key && i + j <= limit", "select.cu", mutants.HARDEST
    ),
    "a digit's remaining rank from the wrong side": Fault(
        "select.cu",
        "rank = search.rank - behind, within",
        "rank = behind + mine - search.rank + 1, within",
        "select.cu",
        mutants.HARDEST,
    ),
    "counters that are not cleared": Fault(
        "select.cu", "    store(a.counts + d, 0ull);\n  }", "  }", "select.cu", mutants.HARDEST
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name: str, emulation: Emulation, tmp_path: Path) -> None:
    fault = FAULTS[name]
    library = mutants.plant(tmp_path / "fault", fault.file, fault.old, fault.new, (fault.source,))
    assert mutants.problem_of(library, fault.engine).startswith(fault.engine)


def test_without_a_fault_nothing_is_noticed(emulation: Emulation) -> None:
    assert mutants.problem_of(build.library()) == ""


def test_a_fault_that_is_no_longer_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there 0 times"):
        mutants.plant(tmp_path / "fault", "reduce.h", "no such text", "")
