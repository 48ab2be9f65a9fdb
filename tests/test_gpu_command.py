"""``python -m bench.gpu`` without a GPU: its deadlines, its parts that fail, its verdict, and a dry run of it all."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bench import gpu, machine, parts, process, results
from bench.process import Call
from bench.scenarios import SCENARIOS
from bench.session import FAILED, PASSED, SKIPPED, Outcome, Part, Session

ROOT = Path(__file__).resolve().parent.parent
TIMES = {name: {"p20": s, "p50": s, "p80": s} for name, s in {"step": 0.03, "loss": 0.003, "alone": 0.002}.items()}
STEP = {
    "title": "a step",
    "shape": [2, 3, 8, 8],
    "dtype": "float32",
    "losses": {"theirs": {**TIMES, "step_bytes": 2**24, "loss_bytes": 2**21, "curve": [1.0, 0.5]}},
}
H200 = {"name": "a GPU", "capability": "9.0", "free_gib": 139.0}


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, time.monotonic() + 500, dry=False, facts={"gpus": [H200], "cpus": 16})


@pytest.fixture
def calls(monkeypatch):
    """What would be run; the answers are taken from a list."""
    seen, answers = [], []

    def call(self, command, seconds, environment=None):
        seen.append((command, seconds, environment or {}))
        return answers.pop(0)

    monkeypatch.setattr(Session, "call", call)
    return seen, answers


def given(monkeypatch, **made):
    """Parts of the given functions, with 100 seconds for each, of which 50 are kept for it."""
    monkeypatch.setattr(gpu, "PARTS", {name: Part(run, 100, 50, ()) for name, run in made.items()})


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_dry_run_ends_with_a_verdict(tmp_path):
    """Everything but the build and the tests, which other tests are about."""
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--parts", "bench,step,plots,sanitizer,profile"]
    done = subprocess.run([*command, f"--out={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "verdict.txt").read_text()
    assert done.stdout.endswith(page + "\n")
    assert "A DRY RUN" in page and "targets reached" in page and "detection-index" in page
    for name, word in (("machine", PASSED), ("bench", PASSED), ("plots", PASSED), ("sanitizer", SKIPPED)):
        assert any(line.split()[:2] == [name, word] for line in page.splitlines()), page
    files = sorted(path.name for path in tmp_path.iterdir())
    (document,) = tmp_path.glob("*.json")
    assert files == sorted([document.name, "log.txt", "plots.zip", "verdict.txt"])
    found = json.loads(document.read_text())
    assert {"detection-index", "detection-index-bfloat16", "rows-1000", "small-softmax"} <= set(found["scenarios"])
    if importlib.util.find_spec("torchvision"):
        assert set(found["steps"]) == {"retinanet", "retinanet-bfloat16"} and "1 x 64 x 64" in page
    else:
        assert "absent: torchvision" in done.stdout and "step" in page
    assert len(zipfile.ZipFile(tmp_path / "plots.zip").namelist()) >= 4


def test_a_part_that_fails_leaves_the_others_alone(monkeypatch, tmp_path, capsys):
    def broken(session, seconds):
        raise OSError("no such thing")

    given(
        monkeypatch,
        machine=lambda session, seconds: Outcome(PASSED),
        first=lambda session, seconds: Outcome(FAILED, "3 failed"),
        second=broken,
        third=lambda session, seconds: Outcome(PASSED, "fine"),
    )
    assert gpu.main(["--parts=first,second,third", f"--out={tmp_path}"]) == 1
    page = (tmp_path / "verdict.txt").read_text()
    lines = {line.split()[0]: line.split(maxsplit=4) for line in page.splitlines() if line.split()[1:2]}
    assert lines["first"][1::3] == [FAILED, "3 failed"]
    assert lines["second"][1::3] == [FAILED, "OSError: no such thing"]
    assert lines["third"][1::3] == [PASSED, "fine"]
    assert capsys.readouterr().out.endswith(page + "\n")


def test_parts_leave_time_for_those_that_come_after_them(monkeypatch, session):
    times = {}

    def part(name):
        def run(session, seconds):
            times[name] = seconds
            return Outcome(PASSED)

        return run

    given(monkeypatch, **{name: part(name) for name in ("a", "b", "c")})
    session.deadline = time.monotonic() + 150 + gpu.VERDICT_SECONDS
    gpu.run(session, ["a", "b", "c"], 1.0)
    assert [round(times[name]) for name in "abc"] == [50, 100, 100]
    gpu.run(session, ["a"], limits={"a": 7})
    assert round(times["a"]) == 7
    session.deadline = time.monotonic() + 1 + gpu.VERDICT_SECONDS
    gpu.run(session, ["c"], 1.0)
    assert session.outcomes["c"].note == "no time left"


def test_default_times_fit():
    total = gpu.VERDICT_SECONDS + sum(part.reserve for part in gpu.PARTS.values())
    assert total <= gpu.SECONDS <= 540
    assert all(part.reserve <= part.limit for part in gpu.PARTS.values())


def test_without_a_gpu_or_a_build_the_rest_is_skipped(session, calls):
    _, answers = calls
    answers.append(Call(1, '{"gpus": []}\n'))
    gpu.run(session, list(gpu.PARTS), 1.0)
    words = {name: outcome.word for name, outcome in session.outcomes.items()}
    assert words == {"machine": FAILED, **dict.fromkeys(set(gpu.PARTS) - {"machine"}, SKIPPED)}
    session.outcomes.clear()
    answers += [Call(0, json.dumps({"gpus": [H200]})), Call(1, "error: nvcc says no\n")]
    gpu.run(session, list(gpu.PARTS), 1.0)
    assert session.outcomes["build"].note == "error: nvcc says no"
    assert session.outcomes["tests"].note == "without build"


def test_an_interruption_ends_in_the_verdict(monkeypatch, tmp_path):
    def interrupted(session, seconds):
        raise KeyboardInterrupt

    given(monkeypatch, machine=interrupted, bench=lambda *_: Outcome(PASSED))
    assert gpu.main(["--parts=machine,bench", f"--out={tmp_path}"]) == 1
    page = (tmp_path / "verdict.txt").read_text()
    assert page.count("interrupted") == 2 and "targets reached" in page


def test_results_are_merged_into_the_known_ones_but_those_of_a_dry_run(monkeypatch, tmp_path):
    known, out = tmp_path / "known", tmp_path / "out"
    monkeypatch.setattr(results, "FOLDER", known)
    environment = {"commit": "abc", "torch": "2.11", "load": 0, "focal_cuda": "1"}

    def measure(session, seconds):
        results.merge(session.out / "a-gpu.json", environment, {"a": {"name": "a", "dtype": "x", "memory": "system"}})
        results.merge(session.out / "a-gpu.json", environment, {"b": STEP}, "steps")
        return Outcome(PASSED)

    given(monkeypatch, machine=lambda *_: Outcome(PASSED), bench=measure)
    assert gpu.main(["--dry-run", "--parts=bench", f"--out={out}"]) == 0 and not known.exists()
    assert gpu.main(["--parts=bench", f"--out={out}"]) == 0
    document = results.load(known / "a-gpu.json")
    assert (list(document["scenarios"]), list(document["steps"])) == (["a"], ["b"])
    assert document["steps"]["b"]["commit"] == "abc"
    assert re.search(r"30.0 ms +3.00 ms +10.0% +2.00 ms", (out / "verdict.txt").read_text())


def test_of_an_earlier_run_only_its_own_files_go(monkeypatch, tmp_path):
    theirs, plots = tmp_path / "theirs.json", tmp_path / "plots.zip"
    theirs.write_text('{"a": 1}')
    plots.write_text("")
    results.merge(tmp_path / "a-gpu.json", {"commit": "", "torch": "", "load": 0}, {})
    given(monkeypatch, machine=lambda *_: Outcome(PASSED))
    assert gpu.main(["--dry-run", "--parts=machine", f"--out={tmp_path}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "theirs.json", "verdict.txt"]


def test_arguments(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.parse([]).out == tmp_path
    assert "profile" not in gpu.parse([]).names and "profile" in gpu.parse(["--profile"]).names
    assert gpu.parse(["--limits=bench=400,tests=60"]).limits == {"bench": 400, "tests": 60}
    for wrong, said in (("--parts=bench,nonsense", "no such part: nonsense"), ("--limits=bench=x", "'x'")):
        with pytest.raises(SystemExit):
            gpu.parse([wrong])
        assert said in capsys.readouterr().err


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_call_is_shown_logged_and_returned(session, capsys):
    call = session.call([sys.executable, "-c", "print('a line'); import os; print(os.environ['X'])"], 60, {"X": "7"})
    assert (call.status, call.output) == (0, "a line\n7\n")
    for text in (capsys.readouterr().out, (session.out / "log.txt").read_text()):
        assert "a line\n7\n" in text
    assert session.call([sys.executable, "-c", "raise SystemExit(4)"], 60).status == 4


def test_a_call_that_takes_too_long_is_ended_with_its_children(session):
    program = (
        "import subprocess, sys, time\n"
        "child = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)'\n"
        "process = subprocess.Popen([sys.executable, '-c', child])\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    call = session.call([sys.executable, "-c", program], 2)
    assert call.status is None and time.monotonic() - start < 15
    status = Path(f"/proc/{call.output.split()[0]}/status")
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() - start < 15
        time.sleep(0.05)


def test_a_flood_of_output_does_not_fill_the_log(session, capsys):
    call = session.call([sys.executable, "-c", "for i in range(200_000): print('x' * 99)\nprint('the end')"], 60)
    assert (session.out / "log.txt").stat().st_size < process.LOG_BYTES + 1000
    assert call.last_line("end") == "the end"


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_build_is_for_what_is_there(session, calls, monkeypatch):
    seen, answers = calls
    for name in ("TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    answers.append(Call(0, "focal_cuda: building CPU + CUDA for 9.0+PTX\nmore\n"))
    assert parts.build(session, 100) == Outcome(PASSED, "focal_cuda: building CPU + CUDA for 9.0+PTX")
    _, _, environment = seen[0]
    assert environment == {"FOCAL_CUDA_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "native", "MAX_JOBS": "16"}


@pytest.mark.parametrize("installed", ({"pytest"}, {"pytest", "xdist", "pytest_timeout"}, set()), ids=len)
def test_the_tests_use_what_is_installed(session, calls, monkeypatch, installed):
    seen, answers = calls
    monkeypatch.setattr(parts, "_has", lambda module: module in installed)
    answers.append(Call(1, "FAILED tests/x.py\n===== 3 failed, 2500 passed, 12 skipped in 80.12s (0:01:20) =====\n"))
    outcome = parts.tests(session, 100)
    if not installed:
        assert outcome == Outcome(SKIPPED, "pytest is not installed")
        return
    assert outcome == Outcome(FAILED, "3 failed, 2500 passed, 12 skipped in 80.12s (0:01:20)")
    command = seen[0][0]
    assert "--devices=cuda" in command and command[-2:] == ["-m", "large or not large"]
    assert ("-n" in command) == ("xdist" in installed) and ("--timeout=120" in command) == ("xdist" in installed)


def test_the_options_of_the_tests_are_known_to_pytest():
    """And they pick what is for a GPU, even where there is none."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "--maxfail=100", "--devices=cuda"]
    command += ["-o", "faulthandler_timeout=90", "-m", "large or not large", "--collect-only", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "tests collected" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("test_every_engine") == 24


def test_the_benchmark_goes_on_after_a_crash(session, calls):
    seen, answers = calls
    document = {"environment": {}, "scenarios": {"a": {}, "c": {}}}
    (session.out / "gpu.json").write_text(json.dumps(document, indent=1))
    answers += [
        Call(-11, "measuring a\nmeasuring b\n"),
        Call(parts.LOST, "measuring c\nmeasuring d\nfailed: d\nno time left for: e\n"),
        Call(0, "measuring e\n"),
    ]
    assert parts.bench(session, 300) == Outcome(FAILED, "2 measured; failed: b, d")
    assert [command[command.index("--without") + 1 :] for command, *_ in seen[1:]] == [["a", "b"], ["a", "b", "c", "d"]]


def test_the_benchmark_goes_on_where_an_earlier_call_had_no_time_left(session, calls, monkeypatch, tmp_path):
    seen, answers = calls
    monkeypatch.setattr(results, "FOLDER", tmp_path / "known")
    for model, name in (("a GPU", "a"), ("another GPU", "b"), ("a GPU of another name", "c")):
        environment = {"model": model, "commit": "", "torch": "", "load": 0}
        results.merge(tmp_path / "known" / f"{name}.json", environment, {name: {}})
    answers += [Call(0, "measuring b\n")] * 2
    assert parts.bench(session, 300).note == "0 measured"
    assert "--without" not in seen[0][0]
    session.missing = True
    assert parts.bench(session, 300) == Outcome(PASSED, "1 measured")
    assert seen[1][0][-2:] == ["--without", "a"]
    assert gpu.parse(["--missing"]).missing and not gpu.parse([]).missing


def test_the_benchmark_stops_where_it_cannot_start(session, calls):
    seen, answers = calls
    answers += [Call(1, "ImportError\n")]
    assert parts.bench(session, 300).word == FAILED and len(seen) == 1
    answers += [Call(None, "measuring a\n")]
    assert parts.bench(session, 300) == Outcome(FAILED, "0 measured; failed: stopped in a")


def test_the_benchmark_says_what_it_had_no_time_for(session, calls):
    (session.out / "gpu.json").write_text(json.dumps({"environment": {}, "scenarios": {"a": {}}}, indent=1))
    calls[1].append(Call(0, "measuring a\nno time left for: b, c\n"))
    assert parts.bench(session, 100) == Outcome(PASSED, "1 measured; no time left for 2")


def test_what_a_training_step_says(session, calls):
    seen, answers = calls
    answers += [
        Call(4, "absent: torchvision does not import: no such module\n"),
        Call(1, "a table\nfailed: float32: the curves part in step 2\n"),
        Call(None, "a table\n"),
        Call(0, "a table\nno time left for: bfloat16\n"),
    ]
    outcomes = [parts.step(session, 90) for _ in range(4)]
    assert outcomes[0] == Outcome(SKIPPED, "torchvision does not import: no such module")
    assert outcomes[1] == Outcome(FAILED, "failed: float32: the curves part in step 2")
    assert outcomes[2] == Outcome(FAILED, "RetinaNet in nothing")
    assert outcomes[3] == Outcome(PASSED, "no time left for: bfloat16")
    assert "--seconds=78" in seen[0][0] and "--device=cuda" in seen[0][0] and "--quick" not in seen[0][0]


def wheel(folder, name, tag):
    """A package of one line."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.5.dist-info"
    files = {
        f"{name}.py": "print('it is', __name__)",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.5-{tag}.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


def test_wheels_that_were_brought_along_are_found_by_later_parts(session, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    session.wheels = tmp_path / "wheels"
    assert parts.wheels(session, 60) == Outcome(SKIPPED, f"none in {tmp_path / 'wheels'}")
    wheel(session.wheels, "brought_along", "py3-none-any")
    ask = [sys.executable, "-c", "import brought_along"]
    assert session.call(ask, 60).status == 1
    assert parts.wheels(session, 60) == Outcome(PASSED, "brought_along-1.5")
    assert session.call(ask, 60) == Call(0, "it is brought_along\n")
    wheel(session.wheels, "of_another_python", "cp27-cp27m-win32")
    assert parts.wheels(session, 60) == Outcome(FAILED, "brought_along-1.5; not installed: of_another_python-1.5")
    assert "of_another_python" in (session.out / "log.txt").read_text() and session.call(ask, 60).status == 0


@pytest.mark.parametrize(
    ("first", "second", "word", "note"),
    [
        ((0, "========= ERROR SUMMARY: 0 errors"), (0, "========= RACECHECK SUMMARY: 0 hazards"), PASSED, "0 hazards"),
        ((86, "========= ERROR SUMMARY: 2 errors"), (0, "========= RACECHECK SUMMARY: 0 hazards"), FAILED, "2 errors"),
        (
            (1, "========= Error: Device not supported"),
            (1, "========= Device not supported."),
            SKIPPED,
            "not permitted",
        ),
        ((0, "========= ERROR SUMMARY: 0 errors"), (None, ""), PASSED, "racecheck: not done in its time"),
        ((1, "ImportError"), (1, "ImportError"), FAILED, "status 1"),
    ],
)
def test_what_the_sanitizer_says(session, calls, monkeypatch, first, second, word, note):
    seen, answers = calls
    monkeypatch.setattr(machine, "tools", lambda: {"compute-sanitizer": "/bin/compute-sanitizer"})
    answers += [Call(*first), Call(*second)]
    outcome = parts.sanitizer(session, 90)
    assert outcome.word == word and note in outcome.note
    assert all(environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} for *_, environment in seen)


def test_kernels_are_read_from_the_profile():
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum"\n'
        '"","","us","Mbyte"\n'
        '"0","void focal::cuda::columns(int)","12.5","79.7"\n'
        '"1","void at::native::fill(int)","2.5","0.1"\n'
    )
    (row,) = parts.kernel_rows(text)
    assert row == {"kernel": "void focal::cuda::columns(int)", "time": "12.5 us", "DRAM read": "79.7 Mbyte"}
    assert parts.kernel_rows("==ERROR== no permission\n") == []


def test_the_profiled_kernels_exist():
    from bench.kernels import HEADLINES, main

    assert {name.partition(":")[0] for name in HEADLINES} <= set(SCENARIOS)
    assert main([], device="cpu", quick=True) == 0


def test_the_machine_is_described_in_one_line_of_json(capsys):
    status = machine.main()
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == (0 if facts["gpus"] else 1) and facts["cpus"] > 0
