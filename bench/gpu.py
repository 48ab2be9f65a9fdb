"""Proves the project on a GPU machine, in one command: ``make gpu``, or ``python3 -m bench.gpu``.

Its parts are processes of their own, each with a time of its own, and none takes another along when it fails:

    machine     what is there
    build       in place, for the GPU that is there, against the torch that is there; needs no network
    tests       the suite on CUDA, with the tests beyond 2^31 elements and those that only a GPU can run (test_cuda.py)
    bench       every scenario, the most telling first, until its time is up
    plots       PNGs of that
    sanitizer   compute-sanitizer's memcheck and racecheck over every engine, where the machine permits it
    profile     ncu over a handful of kernels; only with --profile

Last of all comes the verdict: every target with what was measured, and a line for each part. The status is 1 when a
part failed. Everything printed, the results and the plots are in the folder --out as well; the results are also merged
into bench/results, from where ``python -m bench --report`` takes the README's table.

Needs nothing but the standard library itself, for it to have its say whatever else is missing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, process, results
from bench.process import Call

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 530.0
VERDICT_SECONDS = 12.0
LOST = 3  # bench's status when it lost the device
SLACK = 12.0  # what the benchmark may take beyond its time: the scenario it is in
OWN_FILES = ("log.txt", "verdict.txt", "plots.zip", "profile.csv")
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Outcome:
    word: str
    note: str = ""
    seconds: float = 0.0


@dataclass
class Session:
    out: Path
    deadline: float
    dry: bool
    facts: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def gpu(self) -> dict[str, Any]:
        return next(iter(self.facts.get("gpus") or [{}]))

    @property
    def cpus(self) -> int:
        return self.facts.get("cpus") or os.cpu_count() or 1

    def say(self, text: str) -> None:
        print(text, flush=True)
        with (self.out / "log.txt").open("a") as log:
            log.write(f"{text}\n")

    def call(self, command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> Call:
        """Runs a command for so long at most; what it prints is shown, logged and returned."""
        self.say(f"$ {' '.join(command)}")
        call = process.call(command, seconds, environment or {}, ROOT, self.out / "log.txt")
        if call.status is None:
            self.say(f"stopped after {seconds:.0f} s")
        return call


def _word(call: Call) -> str:
    return PASSED if call.status == 0 else FAILED


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# --- the parts -------------------------------------------------------------------------------------------------------


def look(session: Session, seconds: float) -> Outcome:
    call = session.call(_python("-m", "bench.machine"), seconds)
    lines = call.output.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        session.facts = json.loads(lines[-1])
    if session.dry:
        return Outcome(PASSED, "a dry run: everything on the CPU")
    if call.status != 0:
        return Outcome(FAILED, "no GPU that torch can use")
    return Outcome(PASSED, f"{session.gpu['name']}, {session.gpu['free_gib']} GiB free")


def build(session: Session, seconds: float) -> Outcome:
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(session.cpus))}
    if not session.dry:
        environment["FOCAL_CUDA_BUILD"] = "cuda"
        # "native": the GPUs that are there, and nothing else.
        environment["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST", "native")
    call = session.call(_python("setup.py", "build_ext", "--inplace"), seconds, environment)
    return Outcome(_word(call), call.last_line("^focal_cuda: ") or call.last_line("error"))


def tests(session: Session, seconds: float) -> Outcome:
    if not _has("pytest"):
        return Outcome(SKIPPED, "pytest is not installed")
    command = _python("-m", "pytest", "-q", "-rfE", "--tb=short", "--maxfail=100", f"--devices={session.device}")
    # Where a test hangs, the names of those that run are worth more than those that come after it.
    command += ["-o", "faulthandler_timeout=90"]
    if _has("pytest_timeout"):
        command += ["--timeout=120", "--timeout-method=thread"]
    environment = {}
    # The largest tests take about 12 GiB, and may all run at once.
    workers = min(8, session.cpus, int(session.gpu.get("free_gib", 0) // 12))
    if _has("xdist") and workers > 1:
        command += ["-n", str(workers), "--dist", "worksteal"]
        environment = {
            "OMP_NUM_THREADS": str(max(session.cpus // workers, 1)),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
    if session.dry:
        command += ["tests/test_gradient_policy.py"]
    else:
        command += ["-m", "large or not large"]
    call = session.call(command, seconds, environment)
    return Outcome(_word(call), call.last_line(r"\d+ (passed|failed|errors?|skipped).* in [\d.]+s") or "no summary")


def bench(session: Session, seconds: float) -> Outcome:
    """One process for everything, so that ratios are between neighbours, and another where a kernel takes it along."""
    end = time.monotonic() + seconds
    started: list[str] = []
    crashed: list[str] = []
    failures = ""
    while (left := end - time.monotonic()) > 2 * SLACK or not started:
        command = _python("-m", "bench", "--json", f"--device={session.device}", f"--results={session.out}")
        if session.dry:
            command += ["--quick", "--plan=cuda", "small-softmax", "rows-1000", "detection-index"]
        command += [f"--seconds={left - SLACK:.0f}", *(["--without", *started] if started else [])]
        call = session.call(command, left)
        now = re.findall(r"^measuring (\S+)", call.output, re.MULTILINE)
        started += now
        failures += call.last_line("^failed: ").removeprefix("failed: ")
        if call.status in (0, 1):
            break
        if call.status is None:
            crashed += [f"stopped in {now[-1]}" if now else "stopped"]
            break
        if not now:
            crashed += [f"status {call.status}"]
            break
        crashed += [now[-1]] if call.status != LOST else []
    measured = [name for path in _result_files(session) for name in results.load(path)["scenarios"]]
    note = f"{len(measured)} measured"
    if failures or crashed:
        note += f"; failed: {', '.join([*crashed, *([failures] if failures else [])])}"
    if late := call.last_line("^no time left for: "):
        note += f"; no time left for {len(late.split(', '))}"
    return Outcome(PASSED if measured and not failures and not crashed else FAILED, note)


def _result_files(session: Session) -> list[Path]:
    """The benchmark's, in a folder where others may keep theirs."""
    return sorted(path for path in session.out.glob("*.json") if path.read_text().startswith('{\n "environment"'))


def plots(session: Session, seconds: float) -> Outcome:
    if not _result_files(session):
        return Outcome(SKIPPED, "nothing was measured")
    if not _has("matplotlib"):
        return Outcome(SKIPPED, "matplotlib is not installed")
    call = session.call(_python("-m", "bench", "--plot", f"--results={session.out}"), seconds)
    pictures = sorted(session.out.glob("*.png"))
    with zipfile.ZipFile(session.out / "plots.zip", "w") as archive:
        for picture in pictures:
            archive.write(picture, picture.name)
            if not session.dry:
                shutil.copy(picture, results.FOLDER)
            picture.unlink()
    return Outcome(_word(call), f"{len(pictures)} in plots.zip")


def sanitizer(session: Session, seconds: float) -> Outcome:
    tool = machine.tools()["compute-sanitizer"]
    if tool is None:
        return Outcome(SKIPPED, "compute-sanitizer is not here")
    if not _has("pytest"):
        return Outcome(SKIPPED, "pytest is not installed")
    test = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--devices={session.device}", "tests/test_cuda.py")
    end, words, notes = time.monotonic() + seconds, [], []
    for index, check in enumerate(("memcheck", "racecheck")):
        # Our kernels alone: torch's are not what is asked about, and take most of the time.
        command = [tool, "--tool", check, "--kernel-name", "kns=focal", "--error-exitcode", "86", *test]
        # torch's pool would hide accesses beyond the end of a tensor.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        call = session.call([*command, "-k", "every_engine"], (end - time.monotonic()) / (2 - index), environment)
        summary = call.last_line("SUMMARY: ")
        if call.status is None:
            words.append(SKIPPED)
            notes.append(f"{check}: not done in its time")
        elif refused := call.last_line("^=+ .*(not supported|Unable to|nsufficient|not permitted|Failed to init)"):
            words.append(SKIPPED)
            notes.append(f"{check}: not permitted here ({refused})")
        else:
            words.append(_word(call))
            notes.append(f"{check}: {summary or f'status {call.status}'}")
    word = FAILED if FAILED in words else PASSED if PASSED in words else SKIPPED
    return Outcome(word, "; ".join(notes))


METRICS = {
    "time": "gpu__time_duration.sum",
    "DRAM read": "dram__bytes_read.sum",
    "DRAM written": "dram__bytes_write.sum",
    "DRAM %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "XU %": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "warps %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}


def profile(session: Session, seconds: float) -> Outcome:
    tool = machine.tools()["ncu"]
    if tool is None:
        return Outcome(SKIPPED, "ncu is not here")
    path = session.out / "profile.csv"
    # The clocks stay as they are: others may share the machine, and it is to be seen as it is.
    command = [tool, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command += ["--metrics", ",".join(METRICS.values()), "--log-file", str(path), *_python("-m", "bench.kernels")]
    call = session.call(command, seconds)
    rows = kernel_rows(path.read_text()) if path.exists() else []
    for row in rows:
        session.say("  ".join(f"{name} {value}" for name, value in row.items()))
    if not rows:
        return Outcome(SKIPPED, "ncu saw no kernel: " + (call.last_line("==ERROR==|rror") or f"status {call.status}"))
    return Outcome(_word(call), f"{len(rows)} kernels in profile.csv")


def kernel_rows(text: str) -> list[dict[str, str]]:
    """Our kernels out of ncu's raw page: a header, a line of units, a line for each kernel."""
    table = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    if not table:
        return []
    units, *kernels = table
    return [
        {
            "kernel": kernel["Kernel Name"][:100],
            **{name: f"{kernel[key]} {units[key]}".strip() for name, key in METRICS.items() if kernel.get(key)},
        }
        for kernel in kernels
        if "focal" in kernel["Kernel Name"]
    ]


@dataclass(frozen=True)
class Part:
    """``limit``: seconds at most. ``reserve``: what earlier parts leave for it."""

    run: Callable[[Session, float], Outcome]
    limit: float
    reserve: float
    needs: tuple[str, ...] = ("machine", "build")


PARTS = {
    "machine": Part(look, 40, 20, ()),
    "build": Part(build, 200, 60, ("machine",)),
    "tests": Part(tests, 160, 60),
    "bench": Part(bench, 330, 140),
    "plots": Part(plots, 40, 20, ()),
    "sanitizer": Part(sanitizer, 90, 40),
    "profile": Part(profile, 60, 40),
}


# --- all of them -----------------------------------------------------------------------------------------------------


def run(session: Session, names: list[str], scale: float = 1.0, limits: Mapping[str, float] | None = None) -> None:
    """Every part, whatever becomes of the others; the verdict is written anew after each, should it be the last."""
    for index, name in enumerate(names):
        part = PARTS[name]
        kept = VERDICT_SECONDS + sum(PARTS[later].reserve for later in names[index + 1 :])
        limit = (limits or {}).get(name, part.limit * scale)
        seconds = min(limit, session.deadline - time.monotonic() - kept * scale)
        missing = [n for n in part.needs if session.outcomes.get(n, Outcome(PASSED)).word != PASSED]
        session.say(f"\n=== {name}: {max(seconds, 0):.0f} s at most")
        start = time.monotonic()
        try:
            if missing:
                outcome = Outcome(SKIPPED, f"without {missing[0]}")
            elif seconds < 2:
                outcome = Outcome(SKIPPED, "no time left")
            else:
                outcome = part.run(session, seconds)
        except KeyboardInterrupt:
            session.outcomes[name] = Outcome(FAILED, "interrupted", time.monotonic() - start)
            session.outcomes.update({later: Outcome(SKIPPED, "interrupted") for later in names[index + 1 :]})
            return
        except Exception as error:  # a fault of this program is no reason to lose the rest
            outcome = Outcome(FAILED, f"{type(error).__name__}: {error}")
        session.outcomes[name] = Outcome(outcome.word, outcome.note, time.monotonic() - start)
        session.say(f"=== {name}: {outcome.word}, {time.monotonic() - start:.0f} s. {outcome.note}")
        (session.out / "verdict.txt").write_text(verdict(session))


def verdict(session: Session) -> str:
    """One page: the machine, the targets, the parts."""
    facts, gpu = session.facts, session.gpu
    where = ", ".join(f"{name} {value}" for name, value in gpu.items())
    lines = [f"focal_cuda on {where or 'no GPU'}; torch {facts.get('torch')}, CUDA {facts.get('cuda')}"]
    if session.dry:
        lines += ["A DRY RUN: tiny shapes on the CPU, whose numbers mean nothing."]
    documents = [results.load(path) for path in _result_files(session)]
    document = documents[0] if documents else {"environment": {}, "scenarios": {}}
    if clock := document["environment"].get("clock"):
        lines += [f"{clock}, focal_cuda {document['environment']['focal_cuda']} at {document['environment']['commit']}"]
    lines += ["", _targets(document), ""]
    width = max((len(name) for name in session.outcomes), default=0)
    for name, outcome in session.outcomes.items():
        lines.append(f"{name:{width}}  {outcome.word:7}  {outcome.seconds:4.0f} s  {outcome.note}".rstrip())
    lines += ["", f"Everything is in {session.out}."]
    return "\n".join(lines) + "\n"


def _targets(document: dict[str, Any]) -> str:
    try:
        from bench.report import verdict_table
        from bench.targets import verdicts
    except ImportError as error:
        return f"The targets cannot be looked at: {error}"
    found = verdicts(document, "cuda")
    words = [v.word for v in found]
    summary = f"{words.count('yes')} of {len(found)} targets reached, {words.count('not measured')} not measured."
    return f"{verdict_table(found)}\n{summary}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("OUT") or ROOT / "build" / "gpu"
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of log, results, plots; $OUT")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything together; {SECONDS:.0f}")
    parser.add_argument("--parts", help=f"only these, of {','.join(PARTS)}; what they need is taken for granted")
    parser.add_argument("--limits", default="", help="seconds a part may take, of those: bench=400,tests=60")
    parser.add_argument("--profile", action="store_true", help="with ncu, in the time of the others")
    parser.add_argument("--dry-run", action="store_true", help="the whole sequence on the CPU with tiny shapes")
    options = parser.parse_args(arguments)
    if options.parts:
        options.names = options.parts.split(",")
        if unknown := set(options.names) - set(PARTS):
            parser.error(f"no such part: {', '.join(sorted(unknown))}")
    else:
        options.names = [name for name in PARTS if name != "profile" or options.profile]
    try:
        options.limits = {name: float(value) for name, value in re.findall(r"(\w+)=([^,]*)", options.limits)}
    except ValueError as error:
        parser.error(f"--limits: {error}")
    return options


def main(arguments: list[str] | None = None) -> int:
    start = time.monotonic()
    options = parse(arguments)
    session = Session(options.out.resolve(), start + options.seconds, options.dry_run)
    session.out.mkdir(parents=True, exist_ok=True)
    # What an earlier run left would be taken for this one's.
    for path in [*(session.out / name for name in OWN_FILES), *_result_files(session)]:
        path.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the verdict is printed even so
    names = options.names if "machine" in options.names else ["machine", *options.names]
    run(session, names, options.seconds / SECONDS, options.limits)
    page = verdict(session)
    (session.out / "verdict.txt").write_text(page)
    session.say(f"\n{'=' * 120}\n{page}")
    if not session.dry:
        for path in _result_files(session):
            document = results.load(path)
            results.merge(results.FOLDER / path.name, document["environment"], document["scenarios"])
    return int(any(outcome.word == FAILED for outcome in session.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
