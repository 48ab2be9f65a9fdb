"""The flow of control in disassembled kernels (SASS): basic blocks, loops, and the main path, which is what a warp
issues for most elements. Reads the text of ``nvdisasm -c -g``; knows no file, no compiler and no kernel."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

# What executes an instruction on sm_75 and later, by the beginning of its name; the first that fits. FMA, ALU, MUFU
# as performance counters have them, roughly: integer multiplication is done by the FMA pipe.
PIPES = {
    "mufu": r"MUFU",
    "xu": r"F2F\b|F2I\b|I2F\b|FRND|POPC|FLO|BREV",  # conversions that share MUFU's unit; F2FP and I2FP do not
    "fp64": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "fma": r"F(ADD|MUL|FMA|SWZADD)|HFMA2|HADD2|HMUL2|IMAD|IMUL|IDP",
    "lsu": r"LD[GSL]?\b|ST[GSL]?\b|LDSM|STSM|LDGSTS|ATOM|RED\b|SHFL|CCTL|MEMBAR|ERRBAR|STAS|UBLK",
    "control": r"BRA|BRX|JM[PX]|EXIT|RET|CALL|BSSY|BSYNC|BREAK|BPT|WARPSYNC|BAR|DEPBAR|NOP|YIELD|NANOSLEEP|KILL|BMOV",
    "uniform": r"U[A-Z]|R2UR|S2UR|LDC|VOTEU|REDUX",
    "alu": r"",
}
_PIPE = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in PIPES.items()))

_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]+)\*/\s+(?:(?P<predicate>@!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)", re.MULTILINE)
_LABEL = re.compile(r"^([.$\w]+):")
_LINE = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
_TARGET = re.compile(r"`\(([^)]+)\)")
_BRANCH_TARGETS = re.compile(r"BRANCH_TARGETS\s+([.$\w, ]+)")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "@P0", "@!UP1" or ""
    opcode: str  # with its modifiers: LDG.E.128.CONSTANT
    operands: str = ""
    source: str = ""  # file:line

    @property
    def pipe(self) -> str:
        return _PIPE.match(self.opcode).lastgroup

    def is_a(self, name: str) -> bool:
        """LDG.E.128 is an LDG, an LDG.E and an LDG.E.128; a name may be a regular expression."""
        return re.match(rf"(?:{name})(?!\w)", self.opcode) is not None

    def __str__(self) -> str:
        return " ".join(part for part in (self.predicate, self.opcode, self.operands) if part)


class Work:
    """What a path has to execute, by the beginnings of instructions' names: at least so many, and, where given, at
    most. The latter keeps a path from making up for arithmetic that it skips by doing other arithmetic twice."""

    def __init__(self, least: Mapping[str, int], most: Mapping[str, int] | None = None):
        most = most or {}
        self.names = [*least, *(name for name in most if name not in least)]
        self.least = tuple(least.get(name, 0) for name in self.names)
        self.most = tuple(most.get(name, math.inf) for name in self.names)
        self.nothing = (0,) * len(self.names)

    def __str__(self) -> str:
        parts = zip(self.names, self.least, self.most, strict=True)
        return ", ".join(
            f"{low} {name}" if high in (low, math.inf) else f"{low}..{high} {name}" for name, low, high in parts
        )

    def count(self, code: Iterable[Instruction]) -> tuple[int, ...]:
        code = list(code)
        return tuple(sum(instruction.is_a(name) for instruction in code) for name in self.names)

    def add(self, done: tuple[int, ...], more: tuple[int, ...]) -> tuple[int, ...] | None:
        """None where that is too much; counted no further than to where it makes a difference."""
        total = tuple(d + m for d, m in zip(done, more, strict=True))
        if any(t > high for t, high in zip(total, self.most, strict=True)):
            return None
        caps = (low if high == math.inf else high for low, high in zip(self.least, self.most, strict=True))
        return tuple(min(t, cap) for t, cap in zip(total, caps, strict=True))

    def enough(self, done: tuple[int, ...]) -> bool:
        return all(d >= low for d, low in zip(done, self.least, strict=True))


@dataclass
class Block:
    """Straight code from index `first` to `last`, both executed; leaves: a thread can end here."""

    first: int
    last: int
    successors: list[int] = field(default_factory=list)  # indices of blocks
    leaves: bool = False


@dataclass(frozen=True)
class Loop:
    header: int
    blocks: frozenset[int]
    latches: frozenset[int]


@dataclass
class Function:
    """One kernel, with the subroutines that the compiler put behind it."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the index of the instruction that follows

    @cached_property
    def blocks(self) -> list[Block]:
        """Those reachable from the entry, which is the first; so padding never counts."""
        code, flows = self.instructions, [self._flow(index) for index in range(len(self.instructions))]
        leaders = {0}
        for index, (targets, _, _) in enumerate(flows):
            leaders.update(targets)
            if _ends_block(flows[index], index):
                leaders.add(index + 1)
        starts = sorted(index for index in leaders if index < len(code))
        last = dict(zip(starts, [*(start - 1 for start in starts[1:]), len(code) - 1], strict=True))

        number: dict[int, int] = {}
        found: list[int] = []
        pending = [0]
        while pending:
            start = pending.pop()
            if start in number:
                continue
            number[start] = len(found)
            found.append(start)
            targets, falls, _ = flows[last[start]]
            # The last pushed is the next numbered: code that follows keeps its place.
            pending += [*reversed(targets), *([last[start] + 1] if falls and last[start] + 1 < len(code) else [])]

        blocks = []
        for start in found:
            targets, falls, leaves = flows[last[start]]
            following = [*([last[start] + 1] if falls and last[start] + 1 < len(code) else []), *targets]
            blocks.append(Block(start, last[start], [number[t] for t in dict.fromkeys(following)], leaves))
        return blocks

    def _flow(self, index: int) -> tuple[list[int], bool, bool]:
        """Where an instruction jumps to, whether it can fall through, and whether a thread can end there."""
        instruction = self.instructions[index]
        name = instruction.opcode.partition(".")[0]
        always = not instruction.predicate or instruction.predicate == "@PT"
        if name in ("EXIT", "KILL"):
            return [], not always, True
        if name == "RET":  # of a subroutine; unreachable from the entry, as calls fall through
            return [], not always, False
        if name in ("BRX", "BRXU", "JMX", "JMXU"):
            listed = _BRANCH_TARGETS.search(instruction.operands)
            if not listed:
                raise ValueError(f"{self.name}: {instruction} does not say where it jumps to")
            return [self.labels[label] for label in re.findall(r"[.$\w]+", listed[1])], not always, False
        if name in ("BRA", "JMP"):
            label = _TARGET.search(instruction.operands)
            # `BRA P1, ...`, `BRA.DIV UR4, ...`: a condition among the operands.
            always = always and "," not in instruction.operands
            return [self.labels[label[1]]], not always, False
        if name == "WARPSYNC" and (label := _TARGET.search(instruction.operands)):
            return [self.labels[label[1]]], True, False
        # BSSY and BSYNC only reconverge: a BSYNC stands right before the target of its BSSY.
        return [], True, False

    @cached_property
    def _dominators(self) -> list[set[int]]:
        count = len(self.blocks)
        before: list[list[int]] = [[] for _ in range(count)]
        for index, block in enumerate(self.blocks):
            for successor in block.successors:
                before[successor].append(index)
        dominators = [{0}] + [set(range(count)) for _ in range(count - 1)]
        changed = True
        while changed:
            changed = False
            for index in range(1, count):
                new = set.intersection(*(dominators[b] for b in before[index])) | {index}
                changed |= new != dominators[index]
                dominators[index] = new
        return dominators

    @cached_property
    def back_edges(self) -> set[tuple[int, int]]:
        return {
            (index, successor)
            for index, block in enumerate(self.blocks)
            for successor in block.successors
            if successor in self._dominators[index]
        }

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, one for each header, innermost (smallest) first."""
        before: dict[int, set[int]] = {index: set() for index in range(len(self.blocks))}
        for index, block in enumerate(self.blocks):
            for successor in block.successors:
                before[successor].add(index)
        found = []
        for header in sorted({h for _, h in self.back_edges}):
            latches = frozenset(latch for latch, h in self.back_edges if h == header)
            inside, pending = {header}, list(latches)
            while pending:
                if (block := pending.pop()) not in inside:
                    inside.add(block)
                    pending += before[block]
            found.append(Loop(header, frozenset(inside), latches))
        return sorted(found, key=lambda loop: len(loop.blocks))

    def code(self, blocks: Iterable[int]) -> list[Instruction]:
        """The instructions issued along a path of blocks. Predicated ones count whether they act or not."""
        ranges = (self.blocks[index] for index in blocks)
        issued = [i for block in ranges for i in self.instructions[block.first : block.last + 1]]
        return [instruction for instruction in issued if instruction.opcode != "NOP"]

    @cached_property
    def forward(self) -> dict[int, list[int]]:
        """Successors without the edges that lead back, for each block after all that follow it."""
        result: dict[int, list[int]] = {}
        open_, stack = {0}, [(0, iter(self.blocks[0].successors), [])]
        while stack:
            block, successors, kept = stack[-1]
            for successor in successors:
                if successor in open_:
                    continue  # leads back
                kept.append(successor)
                if successor not in result:
                    open_.add(successor)
                    stack.append((successor, iter(self.blocks[successor].successors), []))
                    break
            else:
                open_.remove(block)
                result[block] = kept
                stack.pop()
        return result

    def cheapest(self, start: int, ends: Iterable[int], work: Work, within: Iterable[int] | None = None) -> list[int]:
        """Of the acyclic paths that do the work, the one that issues the fewest instructions: it goes past a rare
        patch, but not past the arithmetic. Empty where there is no such path."""
        allowed = set(self.forward if within is None else within)
        ends = allowed.intersection(ends)
        code = {index: self.code([index]) for index in allowed}
        slots = {index: len(code[index]) for index in allowed}
        gain = {index: work.count(code[index]) for index in allowed}

        # ahead[n][block][k]: the fewest slots after a block in which k more of the n-th instruction are executed.
        ahead: list[dict[int, list[float]]] = []
        for n, least in enumerate(work.least):
            table: dict[int, list[float]] = {}
            for block, successors in self.forward.items():
                if block in allowed:
                    following = [s for s in successors if s in allowed]
                    table[block] = [
                        0
                        if not k and block in ends
                        else min((slots[s] + table[s][max(0, k - gain[s][n])] for s in following), default=math.inf)
                        for k in range(least + 1)
                    ]
            ahead.append(table)

        def at_least_ahead(block: int, done: tuple[int, ...]) -> float:
            needs = (max(0, low - d) for low, d in zip(work.least, done, strict=True))
            return max((table[block][need] for table, need in zip(ahead, needs, strict=True)), default=0)

        # A* over (block, work done so far).
        queue: list[tuple[float, int, tuple[int, tuple[int, ...]]]] = []
        cost: dict[tuple[int, tuple[int, ...]], int] = {}
        origin: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]] | None] = {}

        def reach(block: int, before: tuple[int, ...], spent: int, state: tuple[int, tuple[int, ...]] | None) -> None:
            done = work.add(before, gain[block])
            if done is None:
                return
            spent += slots[block]
            total = spent + at_least_ahead(block, done)
            if total < math.inf and spent < cost.get((block, done), math.inf):
                cost[block, done], origin[block, done] = spent, state
                heapq.heappush(queue, (total, spent, (block, done)))

        reach(start, work.nothing, 0, None)
        while queue:
            _, spent, state = heapq.heappop(queue)
            if spent > cost[state]:
                continue
            block, done = state
            if block in ends and work.enough(done):
                path = []
                while state is not None:
                    path.append(state[0])
                    state = origin[state]
                return path[::-1]
            for successor in self.forward[block]:
                if successor in allowed:
                    reach(successor, done, spent, state)
        return []

    def main_loop(self, work: Work) -> list[int]:
        """The main path of a kernel that loops: through the innermost loop that does the work, from header to latch.
        Where several do, side by side, the one that does most of it: the unrolled one, not its rest."""
        fits: list[tuple[Loop, list[int]]] = []
        for loop in self.loops:
            if any(other.blocks < loop.blocks for other, _ in fits):
                continue
            if path := self.cheapest(loop.header, loop.latches, work, loop.blocks):
                fits.append((loop, path))
        return max((path for _, path in fits), key=lambda path: sum(work.count(self.code(path))), default=[])

    def main_line(self, work: Work) -> list[int]:
        """The main path of a kernel that does its work once, from entry to exit."""
        return self.cheapest(0, (index for index, block in enumerate(self.blocks) if block.leaves), work)


def _ends_block(flow: tuple[list[int], bool, bool], index: int) -> bool:
    targets, falls, leaves = flow
    return bool(targets) or not falls or leaves


def sections(listing: str) -> dict[str, str]:
    """The text of each kernel, by mangled name."""
    starts = [*_SECTION.finditer(listing)]
    ends = [*(match.start() for match in starts[1:]), len(listing)]
    return {match[1]: listing[match.end() : end] for match, end in zip(starts, ends, strict=False)}


def parse(name: str, text: str) -> Function:
    function, source = Function(name), ""
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            address, predicate, opcode, operands = match.groups()
            function.instructions.append(
                Instruction(int(address, 16), predicate or "", opcode, " ".join(operands.split()), source)
            )
        elif match := _LABEL.match(line):
            function.labels[match[1]] = len(function.instructions)
        elif match := _LINE.match(line):
            source = f"{match[1].rpartition('/')[2]}:{match[2]}"
    return function
