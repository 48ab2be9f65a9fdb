"""Kernels compiled without a GPU: the `cuda` sources of csrc/sources.txt as cubins, what ptxas says of each kernel,
the disassembly, and names that a person can read. Needs nvcc; for the disassembly nvdisasm too, from the toolkit, from
PATH or from the package nvidia-cuda-nvdisasm. Knows no budget."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_build"))

import config  # noqa: E402

CACHE = ROOT / "build" / "sass"
TYPES = {
    "focal::Half": "fp16",
    "focal::BFloat16": "bf16",
    "float": "fp32",
    "double": "fp64",
    "signed char": "int8",
    "unsigned char": "uint8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}
USUAL = {"Focal", "FocalTerm"}  # loss structs that names do without


class Unavailable(Exception):
    """A tool is not there; the message says which and how to get it."""


class CompileError(Exception):
    pass


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel; bytes, but for the registers."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@cache
def toolkit() -> config.Toolkit:
    found = config.find_toolkit(os.environ)
    if isinstance(found, str):
        raise Unavailable(f"no CUDA toolkit: {found}")
    return found


def disassembler() -> str:
    candidates = [str(toolkit().home / "bin" / "nvdisasm"), shutil.which("nvdisasm")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        candidates += [str(file.locate()) for file in files if file.name == "nvdisasm"]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise Unavailable("no nvdisasm, neither in the toolkit nor on PATH: python -m pip install nvidia-cuda-nvdisasm")


def included(source: Path) -> list[Path]:
    """A source and, each once, the project's headers behind it."""
    found: list[Path] = []
    pending = [source]
    while pending:
        path = pending.pop()
        if path not in found and path.is_file():
            found.append(path)
            pending += [
                ROOT / "csrc" / name for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.M)
            ]
    return found


@dataclass(frozen=True)
class Compiled:
    source: str
    usage: dict[str, Usage]  # by mangled name
    listing: str  # the disassembly; empty without a disassembler
    fresh: bool  # it had to be compiled


def compile_all(architecture: str, nvdisasm: str | None) -> list[Compiled]:
    def one(source: str) -> Compiled:
        cubin, log, fresh = _compile(source, architecture)
        return Compiled(source, parse_usage(log), _disassemble(cubin, nvdisasm) if nvdisasm else "", fresh)

    toolkit()  # its absence is told once, from here
    with ThreadPoolExecutor(config.jobs(os.environ)) as pool:
        return list(pool.map(one, config.sources()["cuda"]))


def _disassemble(cubin: Path, nvdisasm: str) -> str:
    kept = cubin.with_suffix(".sass")
    if not kept.exists():
        command = [nvdisasm, "-c", "-g", str(cubin)]
        partial = kept.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        partial.replace(kept)
    return kept.read_text()


def _compile(source: str, architecture: str) -> tuple[Path, str, bool]:
    """The cubin, what ptxas says, and whether it had to be compiled. Kept by what it is made of."""
    command = [str(toolkit().home / "bin" / "nvcc"), *config.NVCC_FLAGS, f"-arch={architecture}", "-cubin"]
    command += ["-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    digest = hashlib.sha256("\0".join([toolkit().version_text, *command]).encode())
    for path in sorted(included(ROOT / source)):
        digest.update(path.read_bytes())
    stem = f"{Path(source).stem}-{architecture}"
    cubin = CACHE / f"{stem}-{digest.hexdigest()[:16]}.cubin"
    log = cubin.with_suffix(".log")
    if cubin.exists() and log.exists():
        return cubin, log.read_text(), False
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = cubin.with_suffix(f".{os.getpid()}.tmp")
    result = subprocess.run([*command, "-o", str(partial), str(ROOT / source)], capture_output=True, text=True)
    if result.returncode:
        raise CompileError(f"{source} does not compile:\n{result.stdout}{result.stderr}")
    for stale in CACHE.glob(f"{stem}-*"):
        if not stale.name.endswith(".tmp"):
            stale.unlink(missing_ok=True)
    log.write_text(result.stdout + result.stderr)
    partial.replace(cubin)  # last, and at once: another process may be looking
    return cubin, log.read_text(), True


def parse_usage(log: str) -> dict[str, Usage]:
    """What `-Xptxas -v` prints, by mangled name."""
    found = {}
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\S+)'", entry)[1]
        stack, stores, loads = re.search(
            rf"Function properties for {re.escape(name)}\s+"
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
            entry,
        ).groups()
        shared = re.search(r"(\d+) bytes smem", entry)
        registers = re.search(r"Used (\d+) registers", entry)[1]
        found[name] = Usage(int(registers), int(stack), int(stores), int(loads), int(shared[1]) if shared else 0)
    return found


def enumerators(root: Path = ROOT) -> dict[str, list[str]]:
    """Values of the enumerations under csrc/, by name: templates are mangled with their numbers."""
    text = "".join(path.read_text() for path in sorted((root / "csrc").rglob("*")) if path.suffix in (".h", ".cuh"))
    found = re.findall(r"\benum class (\w+)[^{;]*\{([^}]*)\}", text)
    return {name: re.findall(r"\b(k\w+)\b(?=\s*(?:,|$|//))", body) for name, body in found}


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Names for people, by mangled name; as short as they stay different."""
    enums, demangled = enumerators(), demangle(mangled)
    brief = {name: short_name(text, enums) for name, text in demangled.items()}
    often = Counter(brief.values())
    return {
        name: brief[name] if often[brief[name]] == 1 else short_name(text, enums, False)
        for name, text in demangled.items()
    }


def short_name(demangled: str, enums: dict[str, list[str]], brief: bool = True) -> str:
    """`void focal::cuda::(anonymous namespace)::rows_kernel<focal::FocalTerm<focal::Math, (focal::Exponent)2>,
    (focal::Mode)1, focal::Half, 19>(...)` -> `rows fp16 two gradient 19`, types first. Brief: without the arithmetic,
    which follows from the types."""
    name = demangled.replace("(anonymous namespace)::", "")
    head = re.match(r"(?:[\w:]+ )?([\w:]+)", name)
    words = []
    if name[head.end() : head.end() + 1] == "<":
        arguments, depth = "", 1
        for letter in name[head.end() + 1 :]:
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if not depth:
                break
            arguments += letter
        if brief:
            arguments = re.sub(r"[\w:]*Math(<[^<>]*>)?,?", "", arguments)
        words = [word for word in _template_words(arguments, enums) if word not in USUAL]
        words.sort(key=lambda word: word not in TYPES.values())
    return " ".join([head[1].split("::")[-1].removesuffix("_kernel"), *words])


def _template_words(arguments: str, enums: dict[str, list[str]]) -> list[str]:
    words = []
    for token in re.findall(r"\([\w: ]+\)-?\w+|\w[\w: ]*", arguments):
        token = token.strip()
        cast = re.fullmatch(r"\(([\w: ]+)\)(-?\w+)", token)
        if cast and (values := enums.get(cast[1].split("::")[-1])):
            words.append(re.sub(r"^k(\w)", lambda match: match[1].lower(), values[int(cast[2])]))
        elif cast:
            words.append(cast[2])
        else:
            words.append(TYPES.get(token, token.split("::")[-1]))
    return words


def demangle(names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool:
        raise Unavailable("c++filt is not there; it comes with binutils")
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines(), strict=True))
