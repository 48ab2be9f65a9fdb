"""What the CUDA kernels cost by their disassembly: the counting itself, on small texts, and the kernels' budgets."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from bench import cubin, sass
from bench.flow import Function, Instruction, Work, parse, sections

# The counting


def listing(body: str) -> str:
    """What nvdisasm prints of a kernel, from lines of `label:` and instructions; addresses are added."""
    lines, address = ['\t.section\t.text.kernel,"ax",@progbits', ".text.kernel:", "kernel:"], 0
    for line in body.strip().splitlines():
        line = line.strip()
        if line.endswith(":") or line.startswith("//##"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(lines)


def function(body: str) -> Function:
    return parse("kernel", listing(body))


def addresses(code: list[Instruction]) -> list[int]:
    return [instruction.address // 16 for instruction in code]


GRID_STRIDE_TEXT = """
    S2R R0, SR_TID.X
    ISETP.GE.AND P0, PT, R0, UR4, PT
    @P0 EXIT
    .L_loop:
    LDG.E.128.CONSTANT R4, desc[UR6][R6.64]
    MUFU.EX2 R0, R4
    MUFU.EX2 R1, R5
    @P0 BRA `(.L_past)
    MUFU.LG2 R0, R0
    FMUL R0, R0, R0
    .L_past:
    @!P1 FADD R0, R0, R1
    STG.E.128 desc[UR6][R14.64], R4
    @!P0 BRA `(.L_loop)
    FADD R0, R0, R0
    EXIT
    .L_end:
    BRA `(.L_end)
    NOP
    NOP
    """
GRID_STRIDE = function(GRID_STRIDE_TEXT)


def test_main_path_of_a_loop_goes_past_a_rare_branch():
    path = GRID_STRIDE.main_loop(Work({"MUFU": 2, "LDG": 1, "STG": 1}))
    assert addresses(GRID_STRIDE.code(path)) == [3, 4, 5, 6, 9, 10, 11]  # the predicated instruction issues too


def test_main_path_takes_a_branch_that_the_arithmetic_needs():
    path = GRID_STRIDE.main_loop(Work({"MUFU": 3}))
    assert addresses(GRID_STRIDE.code(path)) == list(range(3, 12))
    assert GRID_STRIDE.main_loop(Work({"MUFU": 4})) == []
    assert GRID_STRIDE.main_loop(Work({"MUFU.EX2": 3})) == []


def test_too_much_is_no_way_to_do_enough():
    """The second vector is not made up for by evaluating the first a second time."""
    code = function(
        """
        .L_loop:
        MUFU.EX2 R0, R4
        @P0 BRA `(.L_moderate)
        MUFU.EX2 R0, R4
        LDG.E R0, desc[UR6][R6.64]
        MUFU.LG2 R0, R4
        .L_moderate:
        @P1 BRA `(.L_last)
        LDG.E R0, desc[UR6][R6.64]
        MUFU.EX2 R0, R4
        FMUL R0, R0, R0
        FMUL R0, R0, R0
        .L_last:
        @P2 BRA `(.L_loop)
        EXIT
        """
    )
    assert addresses(code.code(code.main_loop(Work({"MUFU": 2, "LDG": 1})))) == [0, 1, 2, 3, 4, 5, 10]
    exact = Work({"MUFU": 2, "LDG": 1}, {"MUFU": 2})
    assert addresses(code.code(code.main_loop(exact))) == [0, 1, 5, 6, 7, 8, 9, 10]
    assert code.main_loop(Work({}, {"MUFU": 0})) == []


@pytest.mark.parametrize("seed", range(50))
def test_no_path_is_cheaper(seed):
    """Against all paths there are, through random branches forwards."""
    draw = random.Random(seed)
    lines, blocks = [], 8
    for block in range(blocks):
        lines += [
            f".L_{block}:",
            *draw.choices(["MUFU.EX2 R0, R0", "LDG.E R0, R1", "FADD R0, R0, R0"], k=draw.randint(1, 4)),
        ]
        if block < blocks - 1:
            target = draw.randint(block + 1, blocks - 1)
            lines.append(f"{draw.choice(['@P0 ', '@P0 ', ''])}BRA `(.L_{target})")
    code = function("\n".join([*lines, "EXIT"]))

    def paths(block: int) -> Iterator[list[int]]:
        if code.blocks[block].leaves:
            yield [block]
        for successor in code.blocks[block].successors:
            yield from ([block, *rest] for rest in paths(successor))

    for least, most in [({}, {}), ({"MUFU": 4}, {}), ({"MUFU": 4, "LDG": 3}, {}), ({"MUFU": 3}, {"MUFU": 3, "LDG": 4})]:
        counted = [(len(code.code(p)), Counter(i.opcode[:4].strip(".") for i in code.code(p))) for p in paths(0)]
        fit = [
            slots
            for slots, count in counted
            if all(count[name] >= n for name, n in least.items()) and all(count[name] <= n for name, n in most.items())
        ]
        assert len(code.code(code.main_line(Work(least, most)))) == min(fit, default=0)


def test_main_path_of_a_whole_kernel():
    path = GRID_STRIDE.main_line(Work({"MUFU": 2}))
    assert addresses(GRID_STRIDE.code(path)) == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13]
    assert addresses(GRID_STRIDE.code(GRID_STRIDE.main_line(Work({})))) == [0, 1, 2]  # a predicated EXIT is an end


def test_code_that_is_never_reached_is_in_no_block():
    reached = {i for block in GRID_STRIDE.blocks for i in range(block.first, block.last + 1)}
    assert reached == set(range(14))


NESTED = function(
    """
    MOV R0, RZ
    .L_rows:
    LDG.E R4, desc[UR6][R6.64]
    .L_classes:
    LDG.E R5, desc[UR6][R6.64]
    MUFU.EX2 R0, R5
    MUFU.EX2 R0, R5
    @P0 BRA `(.L_classes)
    .L_rest:
    LDG.E R5, desc[UR6][R6.64]
    MUFU.EX2 R0, R5
    @P0 BRA P1, `(.L_rest)
    STG.E desc[UR6][R14.64], R4
    @P2 BRA `(.L_rows)
    EXIT
    """
)


def test_loops_are_found_innermost_first():
    sizes = [len(loop.blocks) for loop in NESTED.loops]
    assert sizes == [1, 1, 4]
    outer = NESTED.loops[-1]
    assert all(loop.blocks < outer.blocks for loop in NESTED.loops[:-1])


def test_innermost_loop_that_does_the_work_is_chosen():
    """Of two side by side the unrolled one; with what only the outer one does, the outer one."""
    assert addresses(NESTED.code(NESTED.main_loop(Work({"MUFU": 1})))) == [2, 3, 4, 5]
    assert addresses(NESTED.code(NESTED.main_loop(Work({"MUFU": 1, "STG": 1})))) == list(range(1, 11))


def test_inner_loops_are_gone_through_once():
    assert NESTED.main_line(Work({"MUFU": 4})) == []
    assert len(NESTED.code(NESTED.main_line(Work({"MUFU": 3})))) == 12


def test_branches_of_every_kind():
    code = function(
        """
        BRA.DIV UR4, `(.L_slow)
        BRX R2 -0x1b0 (*"BRANCH_TARGETS .L_a,.L_b"*)
        .L_slow:
        WARPSYNC.COLLECTIVE R8, `(.L_a)
        .L_a:
        CALL.REL.NOINC `($kernel$rcp)
        @P0 BRA `(.L_b)
        BRA `(.L_a)
        .L_b:
        BSSY B0, `(.L_c)
        BSYNC B0
        .L_c:
        @P0 EXIT
        EXIT
        $kernel$rcp:
        MUFU.RCP R0, R0
        RET.REL.NODEC R20 `(kernel)
        """
    )
    first = {code.instructions[block.first].opcode: block for block in code.blocks}

    def leads_to(opcode: str) -> set[str]:
        return {code.instructions[code.blocks[index].first].opcode for index in first[opcode].successors}

    assert leads_to("BRA.DIV") == {"BRX", "WARPSYNC.COLLECTIVE"}
    assert leads_to("BRX") == {"CALL.REL.NOINC", "BSSY"}
    assert leads_to("WARPSYNC.COLLECTIVE") == {"CALL.REL.NOINC"}
    assert leads_to("CALL.REL.NOINC") == {"BRA", "BSSY"}
    assert leads_to("BRA") == {"CALL.REL.NOINC"}
    assert "MUFU.RCP" not in first  # a subroutine's instructions are no part of the kernel's paths
    assert [block.leaves for block in code.blocks].count(True) == 2


def test_an_indirect_branch_to_nowhere_known_is_refused():
    with pytest.raises(ValueError, match="does not say where"):
        _ = function("BRX R2 -0x1b0\nEXIT").blocks


def test_instructions_are_read_with_their_sources():
    code = function(
        """
        //## File "/project/csrc/cuda/rows.cuh", line 12
        @!UP0 LDG.E.64 R2, desc[UR4][R2.64+0x10]
        EXIT
        """
    )
    load = code.instructions[0]
    assert load == Instruction(0, "@!UP0", "LDG.E.64", "R2, desc[UR4][R2.64+0x10]", "rows.cuh:12")
    assert load.is_a("LDG") and load.is_a("LDG.E") and not load.is_a("LD")
    assert load.is_a("LDG.E(?!.EF)") and not load.is_a("LDG.E.(32|128)")


def test_a_listing_is_cut_into_kernels():
    text = "// header\n" + listing("EXIT") + "\n" + listing("NOP\nEXIT").replace("text.kernel", "text.other")
    found = sections(text)
    assert [len(parse(name, body).instructions) for name, body in found.items()] == [1, 2]
    assert list(found) == ["kernel", "other"]


@pytest.mark.parametrize(
    ("pipe", "opcodes"),
    {
        "mufu": "MUFU.EX2 MUFU.RCP",
        "xu": "F2F.F64.F32 I2F.RP F2I.TRUNC FRND POPC",
        "fp64": "DFMA DADD DSETP.GT.AND",
        "fma": "FFMA FMUL.FTZ FADD HFMA2.MMA HADD2.F32 IMAD.MOV.U32 IMAD.WIDE.U32",
        "lsu": "LDG.E.128 STG.E.64 LDS STS.128 LDL LD.E ST.E SHFL.BFLY ATOMG.ADD RED.E.ADD LDGSTS.E",
        "control": "BRA EXIT BSSY BAR.SYNC WARPSYNC",
        "uniform": "ULDC.64 UIADD3 USHF.L.U32 LDC.64 S2UR",
        "alu": "FSEL FSETP.GE.AND FMNMX ISETP.NE.AND IADD3 VIADD LOP3.LUT SHF.L.U32 PRMT SEL MOV F2FP.BF16.F32.PACK_AB "
        "I2FP.F32.S32 LEA S2R",
    }.items(),
)
def test_pipes(pipe, opcodes):
    assert {opcode: Instruction(0, "", opcode).pipe for opcode in opcodes.split()} == dict.fromkeys(
        opcodes.split(), pipe
    )


# Names, declarations, tables


def test_short_names():
    enums = {"Mode": ["kLoss", "kGradient"], "Exponent": ["kZero", "kOne", "kTwo", "kAny"]}
    for demangled, short in {
        "void focal::cuda::(anonymous namespace)::rows<focal::cuda::FocalTerm<focal::BinaryMath<false>, "
        "(focal::Exponent)2>, (focal::Mode)1, focal::BFloat16>(focal::Arguments<float>)": "rows bf16 two gradient",
        "void focal::rows<focal::SmoothTerm<focal::LibmMath<double>, (focal::Exponent)3>, double, 19, true>(double)": (
            "rows fp64 SmoothTerm any 19 true"
        ),
        "void focal::scan_kernel<unsigned char, (int)4>(unsigned char const*)": "scan uint8 4",
        "focal::cuda::finish(double const*, int)": "finish",
        "finish_kernel(double const*, int)": "finish",
    }.items():
        assert cubin.short_name(demangled, enums) == short
    exact = "void focal::rows<focal::Focal<focal::BinaryMath<true>, (focal::Exponent)2> >(float)"
    assert cubin.short_name(exact, enums) == "rows two"
    assert cubin.short_name(exact, enums, brief=False) == "rows BinaryMath true two"


def test_enumerators_are_read_from_the_headers():
    assert cubin.enumerators()["Exponent"][:4] == ["kZero", "kOne", "kTwo", "kAny"]


def test_what_the_compiler_says_is_read():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90'
ptxas info    : Function properties for _Z1aPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_90'
ptxas info    : Function properties for _Z1bPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
"""
    assert cubin.parse_usage(log) == {"_Z1aPf": cubin.Usage(32, 8, 4, 12, 512), "_Z1bPf": cubin.Usage(18, 0, 0, 0, 0)}


@pytest.fixture
def kernel() -> sass.Kernel:
    family = {
        "kernel": r"^elementwise (?P<type>\w+) (?P<unroll>\d+)$",
        "path": "loop",
        "let": {"vector": "4 // sizeof(type)"},
        "elements": "unroll * vector",
        "at_least": {"MUFU": "unroll * vector", "LDG": 1},
    }
    usage = cubin.Usage(32, 0, 0, 0, 0)
    return sass.Kernel(
        "elementwise bf16 1",
        "_Z",
        "elementwise.cu",
        usage,
        listing(GRID_STRIDE_TEXT),
        family,
        {"slots": 3.5, "mufu": 1},
    )


def test_declaration_says_elements_and_least_work(kernel):
    assert str(kernel.work(kernel.family)) == "2 MUFU, 1 LDG"
    assert kernel.parts[0].elements == 2
    assert kernel.evaluate("3 * executed('MUFU')", kernel.parts[0].code) == 6
    assert kernel.per_element() == {
        "slots": 3.5,
        "lsu": 1,
        "mufu": 1,
        "control": 1,
        "fma": 0.5,
    }
    assert kernel.problems() == []


def test_parts_are_added_up(kernel):
    once = {key: kernel.family[key] for key in ("path", "elements", "at_least")}
    kernel.family = {
        **{key: kernel.family[key] for key in ("kernel", "let")},
        "parts": [once, {**once, "elements": 7}],
        "bytes": 4,
    }
    assert kernel.per_element()["slots"] == 3.5 + 1
    kernel.family["parts"][1]["at_least"] = {"MUFU": 100}
    del kernel.parts
    assert kernel.per_element() == {}
    assert "2 MUFU, 1 LDG and 100 MUFU" in kernel.problems()[0]


def test_headroom_is_that_of_the_scarcest(kernel):
    assert kernel.headroom() is None
    kernel.family["bytes"] = "2 * sizeof(type)"
    assert kernel.headroom() == pytest.approx(min(33.5 / 3.5, 4.18 / 1) * 4 / 4.3)


def test_problems_are_told(kernel):
    kernel.recorded = {"slots": 3.0, "mufu": 0.9}
    assert kernel.problems() == ["issues 3.5 slots per element, recorded are 3"]
    kernel.recorded = {}
    assert "no recorded budget" in kernel.problems()[0]
    kernel.usage = cubin.Usage(255, 16, 8, 4, 0)
    assert kernel.problems()[:2] == ["spills 8 bytes, reloads 4", "has a stack frame of 16 bytes"]
    kernel.family = {**kernel.family, "stack": 16}
    assert "stack" not in " ".join(kernel.problems())


def test_a_path_is_shown_with_its_gaps(kernel):
    shown = sass.annotated(kernel)
    assert "7 slots, 2 elements" in shown
    assert "2 instructions passed over" in shown
    assert "MUFU.LG2" not in shown
    assert "@!P1 FADD" in shown


def test_a_kernel_without_a_path_has_a_row(kernel):
    bare = sass.Kernel("probe fp32", "_Z", "probe.cu", cubin.Usage(18, 0, 0, 0, 0), "", {"kernel": "^probe"})
    rows = sass.table([kernel, bare]).splitlines()
    assert rows[2].split()[:5] == ["elementwise", "bf16", "1", "32", "0"]
    assert rows[3].split() == ["probe", "fp32", "18", "0"]


def test_budgets_file_is_as_it_is_written():
    text = sass.BUDGETS.read_text()
    assert sass.dump(json.loads(text)) == text


# The kernels


@pytest.fixture(scope="module")
def kernels() -> list[sass.Kernel]:
    try:
        return sass.measure(say=print)
    except cubin.Unavailable as problem:
        pytest.skip(str(problem))


def test_no_kernel_spills_or_has_a_stack_frame(kernels):
    assert not [f"{kernel.name} {problem}" for kernel in kernels for problem in kernel.usage_problems()]


def test_no_kernel_is_over_its_budget(kernels):
    if not any(kernel.listing for kernel in kernels):
        pytest.skip("no nvdisasm: python -m pip install nvidia-cuda-nvdisasm")
    here, recorded = cubin.toolkit().version_text, sass.read_budgets()["measured_with"]
    if f"nvcc {here}," not in recorded:
        pytest.skip(f"budgets are of {recorded}, this is nvcc {here}")
    assert not [f"{kernel.name} {problem}" for kernel in kernels for problem in kernel.path_problems()]
