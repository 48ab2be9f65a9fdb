"""What the CUDA kernels cost, without a GPU: ``python -m bench.sass --help``.

Compiles every `cuda` source of csrc/sources.txt for one architecture and reports, for each kernel, what the compiler
says (registers, spills, stack, shared memory) and what the disassembly says: issue slots and MUFU per element along
the main path (``flow.py``). ``budgets.json`` declares where that path is, what was recorded, and the goals.
Needs nvcc; for the slots nvdisasm too, from the toolkit or from the package nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import cubin
from bench.flow import Function, Instruction, Work, parse, sections

BUDGETS = Path(__file__).with_name("budgets.json")
TOLERANCE = 0.15  # of a recorded number, before it is a problem: less is the compiler's mood
COSTS = ("slots", "mufu")  # what is recorded and compared
# An H200 at 1.98 GHz, each second: bytes copied, and over its 132 multiprocessors what can be issued.
COPY_RATE = 4.3e12
RATES = {"slots": 33.5e12, "alu": 16.7e12, "mufu": 4.18e12}
SIZES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8, "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Part:
    """A stretch of the main path, and how many elements it is about."""

    code: list[Instruction]
    elements: float


@dataclass
class Kernel:
    name: str
    mangled: str
    file: str
    usage: cubin.Usage
    listing: str = field(default="", repr=False)  # its disassembly, or nothing where there is no disassembler
    family: dict[str, Any] | None = None
    recorded: dict[str, float] = field(default_factory=dict)
    goal: dict[str, float] = field(default_factory=dict)

    @cached_property
    def function(self) -> Function:
        return parse(self.mangled, self.listing)

    @property
    def declared(self) -> list[dict[str, Any]]:
        """Where the main path is: the family itself, or its parts, such as one loop after the other."""
        family = self.family or {}
        return family.get("parts") or ([family] if "path" in family else [])

    @cached_property
    def parts(self) -> list[Part]:
        """The main path; empty where none is declared, or nothing fits what is declared."""
        if not self.listing:
            return []
        found = []
        for declared in self.declared:
            search = {"loop": self.function.main_loop, "line": self.function.main_line}[declared["path"]]
            code = self.function.code(search(self.work(declared)))
            found.append(Part(code, self.evaluate(declared["elements"], code)))
        return found if all(part.code for part in found) else []

    def per_element(self) -> dict[str, float]:
        """Issue slots along the main path, in all and by pipe."""
        costs: defaultdict[str, float] = defaultdict(float)
        for part in self.parts:
            for name, count in Counter(instruction.pipe for instruction in part.code).items():
                costs[name] += count / part.elements
            costs["slots"] += len(part.code) / part.elements
        return dict(costs)

    def headroom(self) -> float | None:
        """How many times as fast as memory can be copied the main path can be issued; below 1 it is the bound."""
        if not self.parts or "bytes" not in self.family:
            return None
        costs = self.per_element()
        slowest = max(costs.get(name, 0) / rate for name, rate in RATES.items())
        return self.evaluate(self.family["bytes"]) / COPY_RATE / slowest

    def calls(self) -> list[str]:
        """Subroutines called on the main path, whose instructions are not in the count."""
        return [i.operands for part in self.parts for i in part.code if i.is_a("CALL")]

    def measured(self) -> dict[str, float]:
        """What is compared with what was recorded."""
        costs = self.per_element()
        return {"slots": round(costs["slots"], 2), "mufu": round(costs.get("mufu", 0), 2)} if costs else {}

    def usage_problems(self) -> list[str]:
        """Local memory: spills, and arrays that are indexed by what only the running kernel knows."""
        usage, found = self.usage, []
        if usage.spill_stores or usage.spill_loads:
            found.append(f"spills {usage.spill_stores} bytes, reloads {usage.spill_loads}")
        if usage.stack > (self.family or {}).get("stack", 0):
            found.append(f"has a stack frame of {usage.stack} bytes")
        return found

    def path_problems(self) -> list[str]:
        if self.family is None:
            return [f"is of no family in {BUDGETS.name}"]
        if not self.listing or not self.declared:
            return []
        if not self.parts:
            return ["has no main path with " + " and ".join(str(self.work(declared)) for declared in self.declared)]
        if not self.recorded:
            return ["has no recorded budget (--record)"]
        return [
            f"issues {self.measured()[name]:g} {name} per element, recorded are {budget:g}"
            for name, budget in self.recorded.items()
            if self.measured()[name] > budget * (1 + TOLERANCE)
        ]

    def problems(self) -> list[str]:
        return self.usage_problems() + self.path_problems()

    def work(self, declared: dict[str, Any]) -> Work:
        """What the main path executes, such as {"MUFU": 24, "LDG": 1}."""

        def counts(name: str) -> dict[str, int]:
            return {opcode: int(self.evaluate(formula)) for opcode, formula in declared.get(name, {}).items()}

        return Work(counts("at_least"), counts("at_most"))

    @cached_property
    def values(self) -> dict[str, Any]:
        """What formulas may use: the named groups of the family's expression, and what it names with "let"."""
        groups = re.search(self.family["kernel"], self.name).groupdict()
        values = {name: int(text) if text.isdigit() else text for name, text in groups.items() if text}
        for name, formula in self.family.get("let", {}).items():
            values[name] = _arithmetic(formula, values)
        return values

    def evaluate(self, formula: str | float, code: list[Instruction] | None = None) -> float:
        """A formula; with a path's code it may ask for executed("LDG"), where a compiler is free to unroll."""
        executed = {"executed": lambda name: sum(instruction.is_a(name) for instruction in code or [])}
        return _arithmetic(formula, self.values | executed)

    def as_json(self) -> dict[str, Any]:
        facts = {"name": self.name, "mangled": self.mangled, "file": self.file, **asdict(self.usage)}
        if self.parts:
            facts |= {"per_element": self.per_element(), "calls": self.calls(), "headroom": self.headroom()}
        return {**facts, "recorded": self.recorded, "goal": self.goal, "problems": self.problems()}


def _arithmetic(formula: str | float, values: dict[str, Any]) -> float:
    return eval(str(formula), {"__builtins__": {}, "sizeof": SIZES.__getitem__, "min": min, "max": max}, values)


def read_budgets() -> dict[str, Any]:
    return json.loads(BUDGETS.read_text())


def measure(architecture: str = "sm_90", say: Callable[[str], None] | None = None) -> list[Kernel]:
    """Every kernel, once for each family that declares a row of it. Without a disassembler there are no paths."""
    say = say or (lambda _: None)
    try:
        nvdisasm = cubin.disassembler()
    except cubin.Unavailable as problem:
        nvdisasm = None
        say(f"no slots: {problem}")
    start = time.monotonic()
    files = cubin.compile_all(architecture, nvdisasm)
    say(f"{sum(f.fresh for f in files)} of {len(files)} files compiled, {time.monotonic() - start:.1f} s")

    budgets = read_budgets()
    names = cubin.short_names(name for file in files for name in file.usage)
    kernels = []
    for file in files:
        listings = sections(file.listing)
        for mangled, usage in file.usage.items():
            families = [family for family in budgets["families"] if re.search(family["kernel"], names[mangled])]
            for family in families or [None]:
                name = " ".join([names[mangled], *([family["row"]] if family and "row" in family else [])])
                goal = next((goal for goal in budgets["goals"] if re.search(goal["kernel"], name)), {})
                goal = {cost: goal[cost] for cost in COSTS if cost in goal}
                recorded = budgets["recorded"].get(name, {})
                listing = listings.get(mangled, "")
                kernels.append(Kernel(name, mangled, file.source, usage, listing, family, recorded, goal))
    twice = [name for name, count in Counter(kernel.name for kernel in kernels).items() if count > 1]
    if twice:
        raise ValueError(f"rows that share a name: {', '.join(twice)}")
    return sorted(kernels, key=lambda kernel: kernel.name)


def record(kernels: list[Kernel], architecture: str) -> None:
    budgets = read_budgets()
    budgets["measured_with"] = f"nvcc {cubin.toolkit().version_text}, {architecture}"
    budgets["recorded"] = {kernel.name: kernel.measured() for kernel in kernels if kernel.parts}
    BUDGETS.write_text(dump(budgets))


def dump(budgets: dict[str, Any]) -> str:
    """JSON with a line for each entry, so that a difference can be read."""

    def section(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n" + ",\n".join(f"    {json.dumps(key)}: {json.dumps(v)}" for key, v in value.items()) + "\n  }"
        if isinstance(value, list) and value:
            return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
        return json.dumps(value)

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {section(value)}" for key, value in budgets.items()) + "\n}\n"


LEGEND = """\
Per element of the main path: issue slots and, of these, MUFU, each beside its recorded budget (bud.) and goal.
other: uniform, control, constants, fp64, conversions on MUFU's unit (xu). spill: bytes stored / loaded.
/copy: how fast an H200 could issue this, where 1 is a copy of the same bytes: below 1, arithmetic is the bound."""


def table(kernels: list[Kernel]) -> str:
    header = [*"kernel regs smem spill slots bud. goal MUFU bud. goal FMA ALU LSU other /copy".split(), ""]
    rows = []
    for kernel in kernels:
        costs, usage = kernel.per_element(), kernel.usage
        spill = f"{usage.spill_stores}/{usage.spill_loads}" if usage.spill_stores or usage.spill_loads else ""
        row = [kernel.name, usage.registers, usage.shared, spill]
        for name in COSTS:
            row += [costs.get(name, 0) if costs else None, kernel.recorded.get(name), kernel.goal.get(name)]
        pipes = [costs.get(pipe, 0) for pipe in ("fma", "alu", "lsu")] if costs else [None] * 3
        other = costs["slots"] - sum(pipes) - costs.get("mufu", 0) if costs else None
        notes = [f"{pipe} {costs[pipe]:.3g}" for pipe in ("xu", "fp64") if pipe in costs]
        notes += [f"{len(kernel.calls())} calls"] if kernel.calls() else []
        notes += ["!"] if kernel.problems() else []
        rows.append([*row, *pipes, other, kernel.headroom(), ", ".join(notes)])
    formats = [*[""] * 4, *[".1f"] * 3, *[".2f"] * 3, *[".1f"] * 4, ".2f", ""]
    return tabulate(rows, header, floatfmt=formats, disable_numparse=[0, 3, len(header) - 1])


def complaints(kernels: list[Kernel]) -> str:
    """One line for each problem, however many kernels have it."""
    having: dict[str, list[str]] = {}
    for kernel in kernels:
        for problem in kernel.problems():
            having.setdefault(problem, []).append(kernel.name)
    return "".join(
        f"! {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {problem}\n"
        for problem, names in having.items()
    )


def annotated(kernel: Kernel) -> str:
    """The main path, with what executes each instruction, where it comes from, and what is passed over; then the lines
    of source that most of it comes from."""
    if not kernel.parts:
        raise SystemExit(f"{kernel.name} has no main path: {'; '.join(kernel.problems()) or 'none is declared'}")
    lines, by_line = [], Counter()
    for part in kernel.parts:
        lines.append(f"{kernel.name}: {len(part.code)} slots, {part.elements:g} elements")
        following = part.code[0].address
        for instruction in part.code:
            if instruction.address > following:
                lines.append(f"        ... {(instruction.address - following) // 16} instructions passed over")
            elif instruction.address < following:
                lines.append("        ... back")
            following = instruction.address + 16
            lines.append(f"  {instruction.address:05x} {instruction.pipe:8}{str(instruction):64} {instruction.source}")
            by_line[instruction.source] += 1 / part.elements
    lines += [
        "slots per element, by line:",
        *(f"  {slots:6.2f}  {source}" for source, slots in by_line.most_common(20)),
    ]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sass", description="Registers, spills and issue slots per element of the CUDA kernels."
    )
    parser.add_argument("word", nargs="*", help="only kernels whose short names contain every word")
    parser.add_argument(
        "--path", metavar="NAME", help="show the main path of the kernel of this name, instruction by instruction"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--record", action="store_true", help=f"write the present numbers to {BUDGETS.name} as budgets")
    parser.add_argument("--arch", default="sm_90", help="architecture; budgets and goals are of sm_90")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        kernels = measure(options.arch, say=lambda text: print(text, file=sys.stderr))
    except (cubin.Unavailable, cubin.CompileError) as problem:
        raise SystemExit(str(problem)) from None
    if options.record:
        record(kernels, options.arch)
        print(f"wrote {BUDGETS}", file=sys.stderr)
        budgets = read_budgets()["recorded"]
        for kernel in kernels:
            kernel.recorded = budgets.get(kernel.name, {})
    chosen = [kernel for kernel in kernels if all(word in kernel.name for word in options.word)]
    if options.path:
        named = [kernel for kernel in chosen if kernel.name == options.path]
        named = named or [kernel for kernel in chosen if options.path in kernel.name]
        if len(named) != 1:
            raise SystemExit(
                f"{len(named)} kernels contain {options.path!r}: {', '.join(k.name for k in named or chosen)}"
            )
        print(annotated(named[0]))
        return 0
    if options.json:
        print(json.dumps([kernel.as_json() for kernel in chosen], indent=1))
    else:
        print(table(chosen))
        print(LEGEND)
        print(complaints(chosen), end="")
    return int(any(kernel.problems() for kernel in chosen))


if __name__ == "__main__":
    sys.exit(main())
