"""Tables: one for each scenario, the verdicts, and the one in the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.environment import headline
from bench.results import CURVES, select
from bench.targets import PLAIN, Verdict, median, ratio, share_of_copy, verdicts

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
COMMAND = "python -m bench --json --plot --report"
STEP_COMMAND = "python -m bench.retinanet --json"
OWN = "focal_cuda"

Result = dict[str, Any]


def scenario_table(name: str, scenario: Result) -> str:
    """All that was measured of one scenario, fastest training first."""
    candidates = scenario["candidates"]
    times = [median(c) for c in candidates.values() if "training" in c]
    factor, unit = (1e6, "us") if times and max(times) < 1e-3 else (1e3, "ms")
    own = median(candidates.get(OWN, {}))
    baseline = median(candidates.get(scenario["baseline"], {}))
    compiled = median(candidates.get(scenario["compiled"], {}))

    rows = []
    for label, candidate in sorted(candidates.items(), key=lambda item: median(item[1]) or float("inf")):
        time = median(candidate)
        if time is None:
            rows.append([label, candidate.get("failed", "not measured")])
            continue
        is_loss = "loss_error" in candidate
        passes = 1 if label == "sum" else 2
        moved = scenario["bytes"]["training"] if is_loss else passes * scenario["bytes"]["logits"]
        # Without its options what the scenario declares need not be moved.
        moves_all = is_loss and label != PLAIN
        p20, p80 = candidate["training"]["p20"], candidate["training"]["p80"]
        rows.append(
            [
                label,
                _number(median(candidate, "forward"), factor),
                _number(median(candidate, "backward"), factor),
                f"{_number(time, factor)} ({_number(p20, factor)} - {_number(p80, factor)})",
                _number(median(candidate, "inference"), factor),
                _percent(share_of_copy(scenario, candidate, "inference")) if moves_all else "",
                f"{moved / time * 1e-9:.1f}" if label != PLAIN else "",
                _percent(share_of_copy(scenario, candidate)) if moves_all else "",
                _times(ratio(baseline, time)) if is_loss else "",
                _times(ratio(compiled, time)) if is_loss else "",
                _times(ratio(time, own)) if is_loss and label != OWN else "",
                _number(candidate.get("peak_memory")),
                _error(candidate.get("loss_error"), is_loss),
                _error(candidate.get("gradient_error"), is_loss),
            ]
        )
    headers = [
        "",
        f"fwd [{unit}]",
        f"bwd [{unit}]",
        f"fwd+bwd [{unit}] (p20 - p80)",
        f"no-grad [{unit}]",
        "% of copy",
        "GB/s",
        "% of copy",
        "vs Python",
        "vs compile",
        f"{OWN} is",
        "peak mem [x logits]",
        "loss err",
        "grad err",
    ]
    shape = " x ".join(map(str, scenario["shape"]))
    title = f"{name}: {scenario['title']}, [{shape}] {scenario['dtype']}"
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}\n"


def group_table(scenarios: Iterable[Result]) -> str:
    """One line for each scenario of a group."""
    scenarios = list(scenarios)
    group = scenarios[0]["group"]
    if group in CURVES:
        return _size_table(scenarios)
    rows = [_row([scenario]) for scenario in scenarios]
    for row, scenario in zip(rows, scenarios, strict=True):
        row[0] += "" if scenario["dtype"] == "float32" else f", {scenario['dtype']}"
    return f"{_CAPTIONS[group]}\n{tabulate(rows, _headers(group), disable_numparse=True)}\n"


def _size_table(scenarios: list[Result]) -> str:
    """One column for each candidate."""
    labels = list(scenarios[0]["candidates"])
    rows = [
        [s["title"], " x ".join(map(str, s["shape"]))]
        + [_number(median(s["candidates"].get(label, {})), 1e3) for label in labels]
        + [_times(ratio(median(s["candidates"].get(s["baseline"], {})), median(s["candidates"].get(OWN, {}))))]
        for s in scenarios
    ]
    title = f"{scenarios[0]['group']}: forward + backward in ms against size"
    return f"{title}\n{tabulate(rows, ['', 'logits', *labels, 'vs Python'], disable_numparse=True)}\n"


LEGEND = (
    "fwd+bwd: median of one training call (p20 - p80). The forward of focal_cuda makes the gradient.\n"
    "GB/s: the least bytes training can move (read logits, targets and options, write the gradient) / time.\n"
    "% of copy: that speed against a copy of the logits into existing memory in the same run; no-grad: the loss alone\n"
    "and what it has to read. sum: reads the logits and does nothing else.\n"
    "vs Python, vs compile: how many times as fast as that. focal_cuda is: how many times as fast as this.\n"
    "Errors against float64: the loss's, relative; the gradient's, worst row, relative to that row's largest.\n"
)


def verdict_table(verdicts: list[Verdict]) -> str:
    rows = [
        [
            v.scenario,
            v.target.dtype,
            v.target.claim,
            v.target.bound,
            "" if v.value is None else f"{v.value:.3g}",
            v.word + (f" ({v.unmeasured} not measured)" if v.unmeasured and v.value is not None else ""),
        ]
        for v in verdicts
    ]
    return "Must reach\n" + tabulate(
        rows, ["scenario (the worst)", "type", "forward + backward", "target", "measured", "reached"]
    )


def readme_section(devices: dict[str, Result], pictures: str) -> str:
    """The generated part of the README: for each device its table, how it was made, and its plot.

    ``pictures`` is the folder of the plots as the README has to name it.
    """
    parts = []
    for slug, document in devices.items():
        section = _cuda_section if document["environment"].get("device") == "cuda" else _cpu_section
        if lines := section(document):
            parts += [*lines, f"![Speed-up over the pure-Python loss]({pictures}/{slug}-speedup.png)", ""]
        parts += _steps(document)
        if peers := document["environment"].get("peers"):
            parts += [f"Compared with {', '.join(' '.join(peer) for peer in peers.items())}.", ""]
    return "\n".join(parts)


def _cpu_section(document: Result) -> list[str]:
    usual, reused = select(document), select(document, reused=True)
    scenarios = [s for s in usual.values() if s["group"] not in CURVES]
    if not scenarios:
        return []
    caption = (
        "Forward + backward, float32, gamma = 2. `12x`: focal_cuda is 12 times as fast as that. Made by "
        f"`{COMMAND}` on {headline(document['environment'])}, {max(s['date'] for s in scenarios)}."
    )
    if reused:
        caption += (
            " Where there are two factors, the first is with new memory for every large tensor, the second "
            "(`--memory reused`) with memory that the process already has, which helps whoever needs many tensors."
        )
    lines = [caption, "", *_tables([usual, reused])]
    for state, with_reused in (("", False), (" with reused memory", True)):
        if found := [v for v in verdicts(document, "cpu", with_reused) if v.value is not None]:
            lines += [_summary(found, state), ""]
    return lines


def _cuda_section(document: Result) -> list[str]:
    """One line for each scenario, with the columns of each type beside each other."""
    by_dtype = {dtype: select(document, dtype=dtype) for dtype in ("float32", "bfloat16")}
    by_dtype = {dtype: found for dtype, found in by_dtype.items() if found}
    measured = {name: s for found in by_dtype.values() for name, s in found.items() if not s["group"]}
    if not measured:
        return []
    caption = (
        "Forward + backward, gamma = 2 where nothing else is said; the times are the device's, those of a call's "
        "overhead the host's as well. `12x`: focal_cuda is 12 times as fast as that. Made by "
        f"`make gpu` on {headline(document['environment'])}, {max(s['date'] for s in measured.values())}."
    )
    headers, rows = ["scenario", "logits"], []
    for dtype in by_dtype:
        headers += [dtype, "% of a copy", "pure Python", "torch.compile"]
    for name, scenario in measured.items():
        row = [scenario["title"], " x ".join(map(str, scenario["shape"]))]
        for found in by_dtype.values():
            row += _cuda_cells(found[name]) if name in found else ["", "", "", ""]
        rows.append([*row, _peak(scenario)])
    headers.append("peak memory, x logits (Python)")
    lines = [caption, "", tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]
    if grouped := _tables(list(by_dtype.values()), tuple(_CAPTIONS)):
        lines += [f"Where there are two factors, they are those of {' and '.join(by_dtype)}.", "", *grouped]
    if found := [v for v in verdicts(document, "cuda") if v.value is not None]:
        lines += [_summary(found, ""), ""]
    return lines


def _cuda_cells(scenario: Result) -> list[str]:
    candidates = scenario["candidates"]
    own = median(candidates.get(OWN, {}))

    def against(label: str) -> str:
        return _times(ratio(median(candidates.get(label, {})), own))

    share = share_of_copy(scenario, candidates.get(OWN, {}))
    return [_seconds(own), _percent(share), against(scenario["baseline"]), against(scenario["compiled"])]


def _summary(found: list[Verdict], state: str) -> str:
    missed = [
        f"{v.scenario}{'' if v.target.dtype == 'float32' else f' {v.target.dtype}'}: "
        f"{v.target.claim} {v.value:.3g} ({v.target.bound})"
        for v in found
        if v.word == "NO"
    ]
    text = f"{len(found) - len(missed)} of {len(found)} targets (`bench/targets.py`) are reached{state}"
    return f"{text}; missed: {'; '.join(missed)}." if missed else f"{text}."


def write_readme(path: Path, section: str) -> None:
    """Puts the section between the markers; everything else stays."""
    text = path.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise SystemExit(f"{path}: expected one line '{START}' and one line '{END}' to put the table between")
    before, rest = text.split(START)
    path.write_text(f"{before}{START}\n{section.strip()}\n{END}{rest.split(END)[1]}")


def steps_table(steps: Iterable[Result], form: str) -> str:
    """Two lines for each training step: with the library's own loss, and with this project's."""
    headers = ["training step", "type", "loss", "step", "of it the loss", "share", "the loss by itself"]
    headers += ["peak memory of the step", "of the loss", "loss after it all"]
    rows = []
    for step in steps:
        images, _, *edges = step["shape"]
        title = f"{step['title']}, {images} x {' x '.join(map(str, edges))}"
        for label, found in step["losses"].items():
            whole, loss = median(found, "step"), median(found, "loss")
            times = [_seconds(whole), _seconds(loss), _percent(ratio(loss, whole), 1), _seconds(median(found, "alone"))]
            memory = [f"{found[name] / 2**20:.0f} MiB" for name in ("step_bytes", "loss_bytes")]
            rows.append([title, step["dtype"], label, *times, *memory, f"{found['curve'][-1]:.4f}"])
    return tabulate(rows, headers, tablefmt=form, disable_numparse=True)


def _steps(document: Result) -> list[str]:
    if not (steps := list(document.get("steps", {}).values())):
        return []
    latest = max(steps, key=lambda step: step["date"])
    anchors, classes = latest["logits"][0]
    caption = (
        f"Whole training steps of the RetinaNet of torchvision {latest['torchvision']} (random weights, made-up images "
        f"and boxes, {anchors} x {classes} logits of the first image), with its own loss and under "
        '`focal_cuda.patch("torchvision")`, in turn in one process: medians, and the most memory beyond weights and '
        f"momenta. Made by `{STEP_COMMAND}` at {latest['commit']}, torch {latest['torch']}, load {latest['load']}, "
        f"{latest['date']}."
    )
    return [caption, "", steps_table(steps, "github"), ""]


_CAPTIONS = {
    "options": "With options, against the same call without them (time / plain):",
    "relatives": "Relatives of the focal loss, against their originals in PyTorch:",
}


def _tables(states: Sequence[Mapping[str, Result]], groups: tuple[str | None, ...] = (None, *_CAPTIONS)) -> list[str]:
    """A table for each group of the first state, with the factors of the others beside its own."""
    lines = []
    for group in groups:
        if names := [name for name, scenario in states[0].items() if scenario["group"] == group]:
            rows = [_row([state[name] for state in states if name in state]) for name in names]
            table = tabulate(rows, _headers(group), tablefmt="github", disable_numparse=True)
            lines += [*([_CAPTIONS[group], ""] if group else []), table, ""]
    return lines


def _headers(group: str | None) -> list[str]:
    return [
        "scenario",
        "logits",
        OWN,
        *(["time / plain"] if group == "options" else []),
        "% of a copy",
        "pure Python",
        "torch.compile",
        *([] if group else ["kornia", "MONAI"]),
        "peak memory, x logits (Python)",
    ]


def _row(states: list[Result]) -> list[str]:
    scenario, group = states[0], states[0]["group"]
    candidates = scenario["candidates"]
    own = candidates.get(OWN, {})

    def against(label: str | None, written: Callable[[float | None], str] = _times) -> str:
        factors = [ratio(median(s["candidates"].get(label, {})), median(s["candidates"].get(OWN, {}))) for s in states]
        return " / ".join(written(f) for f in factors if f is not None)

    return [
        scenario["title"],
        " x ".join(map(str, scenario["shape"])),
        _seconds(median(own)),
        *([against(PLAIN, lambda f: f"{1 / f:.2f}")] if group == "options" else []),
        _percent(share_of_copy(scenario, own)),
        against(scenario["baseline"]),
        against(scenario["compiled"]),
        *([] if group else [against("kornia"), against("MONAI")]),
        _peak(scenario),
    ]


def _peak(scenario: Result) -> str:
    """Of focal_cuda and, in brackets, of plain Python; nothing where the logits are hardly any memory."""
    candidates = scenario["candidates"]
    memory = _number(candidates.get(OWN, {}).get("peak_memory"))
    if not memory or scenario["bytes"]["logits"] <= 1e6:
        return ""
    python = candidates.get(scenario["baseline"], {}).get("peak_memory")
    return f"{memory} ({python:.1f})" if python else memory


def _number(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return ""
    value *= factor
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1e6:.0f} us" if value < 1e-3 else f"{_number(value, 1e3)} ms"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x" if value >= 1 else f"{value:.2f}x"


def _error(value: float | None, is_loss: bool) -> str:
    if not is_loss:
        return ""
    return "not finite" if value is None else f"{value:.0e}"
