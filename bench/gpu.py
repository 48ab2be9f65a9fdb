"""Proves the project on a GPU machine, in one command: ``make gpu``, or ``python3 -m bench.gpu``.

Its parts are processes of their own, each with a time of its own, and none takes another along when it fails:

    machine     what is there
    build       in place, for the GPU that is there, against the torch that is there; needs no network
    tests       the suite on CUDA, with the tests beyond 2^31 elements and those that only a GPU can run (test_cuda.py)
    wheels      libraries to compare with that were brought along as wheels, for what comes after
    bench       every scenario, the most telling first, until its time is up
    step        a training step of torchvision's RetinaNet, with its own loss and with this one
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
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import results
from bench.parts import PARTS
from bench.session import FAILED, PASSED, ROOT, SKIPPED, Outcome, Session

SECONDS = 530.0
VERDICT_SECONDS = 12.0
OWN_FILES = ("log.txt", "verdict.txt", "plots.zip", "profile.csv")


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
    documents = [results.load(path) for path in session.results]
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
        from bench.report import steps_table, verdict_table
        from bench.targets import verdicts
    except ImportError as error:
        return f"The targets cannot be looked at: {error}"
    found = verdicts(document, "cuda")
    words = [v.word for v in found]
    summary = f"{words.count('yes')} of {len(found)} targets reached, {words.count('not measured')} not measured."
    steps = document.get("steps", {}).values()
    return f"{verdict_table(found)}\n{summary}" + (f"\n\n{steps_table(steps, 'simple')}" if steps else "")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("OUT") or ROOT / "build" / "gpu"
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of log, results, plots; $OUT")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything together; {SECONDS:.0f}")
    parser.add_argument("--parts", help=f"only these, of {','.join(PARTS)}; what they need is taken for granted")
    parser.add_argument("--limits", default="", help="seconds a part may take, of those: bench=400,tests=60")
    parser.add_argument("--missing", action="store_true", help="measure only what bench/results lacks of this GPU")
    parser.add_argument("--profile", action="store_true", help="with ncu, in the time of the others")
    parser.add_argument(
        "--wheels", type=Path, default=Session.wheels, metavar="DIR", help="of libraries to compare with; build/wheels"
    )
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
    session.missing, session.wheels = options.missing, options.wheels.resolve()
    if session.dry:
        session.environment["OMP_NUM_THREADS"] = "1"  # on a busy machine the second one is waited for
    session.out.mkdir(parents=True, exist_ok=True)
    # What an earlier run left would be taken for this one's.
    for path in [*(session.out / name for name in OWN_FILES), *session.results]:
        path.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the verdict is printed even so
    names = options.names if "machine" in options.names else ["machine", *options.names]
    run(session, names, options.seconds / SECONDS, options.limits)
    page = verdict(session)
    (session.out / "verdict.txt").write_text(page)
    session.say(f"\n{'=' * 120}\n{page}")
    if not session.dry:
        for path in session.results:
            document = results.load(path)
            for section in results.SECTIONS:
                known = results.FOLDER / path.name
                results.merge(known, document["environment"], document.get(section, {}), section)
    return int(any(outcome.word == FAILED for outcome in session.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
