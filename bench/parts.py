"""The parts of ``python -m bench.gpu``: each runs a process of its own, or several, and says what came of it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import zipfile

from bench import machine, results
from bench.process import Call
from bench.session import FAILED, PASSED, ROOT, SKIPPED, Outcome, Part, Session

# Exit statuses: of the benchmark when it lost the device, of the training step where there is no torchvision.
LOST, ABSENT = 3, 4
SLACK = 12.0  # what the benchmark may take beyond its time: the scenario it is in


def _word(call: Call) -> str:
    return PASSED if call.status == 0 else FAILED


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


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


def wheels(session: Session, seconds: float) -> Outcome:
    """Of libraries to compare with, brought along: into a folder that the parts to come look into."""
    brought = sorted(session.wheels.glob("*.whl"))
    if not brought:
        return Outcome(SKIPPED, f"none in {session.wheels}")
    end, folder = time.monotonic() + seconds, ROOT / "build" / "peers"
    shutil.rmtree(folder, ignore_errors=True)
    command = _python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    # One by one, for what is not made for this Python to be left out alone.
    calls = {
        "-".join(wheel.name.split("-")[:2]): session.call(
            [*command, f"--target={folder}", str(wheel)], end - time.monotonic()
        )
        for wheel in brought
    }
    session.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    failed = [name for name, call in calls.items() if call.status != 0]
    note = ", ".join(name for name in calls if name not in failed)
    return Outcome(FAILED if failed else PASSED, note + (f"; not installed: {', '.join(failed)}" if failed else ""))


def bench(session: Session, seconds: float) -> Outcome:
    """One process for everything, so that ratios are between neighbours, and another where a kernel takes it along."""
    end = time.monotonic() + seconds
    started = _take_known(session) if session.missing else []
    crashed: list[str] = []
    failures, call = "", None
    while (left := end - time.monotonic()) > 2 * SLACK or call is None:
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
    measured = _measured(session)
    note = f"{len(measured)} measured"
    if failures or crashed:
        note += f"; failed: {', '.join([*crashed, *([failures] if failures else [])])}"
    if late := call.last_line("^no time left for: "):
        note += f"; no time left for {len(late.split(', '))}"
    return Outcome(PASSED if measured and not failures and not crashed else FAILED, note)


def _measured(session: Session) -> list[str]:
    return [name for path in session.results for name in results.load(path)["scenarios"]]


def _take_known(session: Session) -> list[str]:
    """What was measured on such a GPU before counts as measured now."""
    for path in results.FOLDER.glob("*.json"):
        if results.load(path)["environment"].get("model") == session.gpu.get("name"):
            shutil.copy(path, session.out)
    return _measured(session)


def step(session: Session, seconds: float) -> Outcome:
    command = _python("-m", "bench.retinanet", "--json", f"--device={session.device}", f"--results={session.out}")
    command += [f"--seconds={max(seconds - SLACK, 1):.0f}", *(["--quick"] if session.dry else [])]
    call = session.call(command, seconds)
    if call.status == ABSENT:
        return Outcome(SKIPPED, call.last_line("^absent: ").removeprefix("absent: "))
    found = [step for path in session.results for step in results.load(path).get("steps", {}).values()]
    measured = ", ".join(step["dtype"] for step in found) or "nothing"
    return Outcome(_word(call), call.last_line("^failed: |Error: |^no time left for: ") or f"RetinaNet in {measured}")


def plots(session: Session, seconds: float) -> Outcome:
    if not session.results:
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


PARTS = {
    # The first import of torch reads gigabytes, and without it nothing else is done.
    "machine": Part(look, 120, 20, ()),
    "build": Part(build, 200, 60, ("machine",)),
    "tests": Part(tests, 160, 60),
    "wheels": Part(wheels, 40, 10, ("machine",)),
    "bench": Part(bench, 330, 140),
    "step": Part(step, 90, 50),
    "plots": Part(plots, 40, 20, ()),
    "sanitizer": Part(sanitizer, 90, 40),
    "profile": Part(profile, 60, 40),
}
