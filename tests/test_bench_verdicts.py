"""What the benchmark says of its results: whether targets are reached, and the tables."""

import pytest

from bench import report
from bench.scenarios import SCENARIOS, plan
from bench.targets import MINING, OPTIONS, PLAIN, RELATIVES, TARGETS, Target, share_of_copy, verdicts


def _result(name, dtype="float32", **times):
    candidates = {name.replace("_s_", " "): {"training": {"p50": t}} for name, t in times.items()}
    return {"name": name, "dtype": dtype, "memory": "system", "candidates": candidates}


def _document(*scenarios):
    return {"scenarios": {f"{s['name']}-{s['dtype']}": s for s in scenarios}}


def test_verdicts_compare_medians_of_forward_and_backward():
    results = _document(_result("a", focal_cuda=1.0, other=4.0), _result("b", focal_cuda=1.0, other=3.0))
    speedup = Target(("a", "b"), "speedup", "other", at_least=3.5)
    time = Target(("a",), "time", "other", at_most=0.25)
    found = verdicts(results, "cpu", targets=(speedup, time))
    assert [(v.scenario, v.value, v.word) for v in found] == [("b", 3.0, "NO"), ("a", 0.25, "yes")]


def test_verdicts_are_about_one_type():
    results = _document(_result("a", focal_cuda=1.0, other=4.0), _result("a", "bfloat16", focal_cuda=1.0, other=8.0))
    targets = [Target(("a",), "speedup", "other", 4, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]
    assert [v.value for v in verdicts(results, "cpu", targets=tuple(targets))] == [4.0, 8.0, None]


def test_verdicts_on_the_speed_of_a_copy_count_bytes():
    scenario = _result("a", focal_cuda=2.0, copy_=1.6)
    scenario["bytes"] = {"logits": 100, "targets": 50, "inference": 150, "training": 250}
    scenario["candidates"]["focal_cuda"]["inference"] = {"p50": 1.5}
    targets = (Target(("a",), "of_copy", at_least=0.9), Target(("a",), "inference_of_copy", at_least=0.9))
    # A copy moves 200 bytes in 1.6, so 125 a second.
    assert [v.value for v in verdicts(_document(scenario), "cpu", targets=targets)] == [pytest.approx(1.0), 0.8]
    assert share_of_copy(scenario, {}) is None


def test_verdicts_on_memory_take_the_worst_scenario_and_say_what_is_missing():
    a, b = _result("a"), _result("b")
    a["candidates"] = {"focal_cuda": {"peak_memory": 1.0}}
    target = Target(("a", "b"), "peak_memory", at_most=1.05)
    (verdict,) = verdicts(_document(a), "cpu", targets=(target,))
    assert (verdict.word, verdict.unmeasured) == ("yes", 1)
    b["candidates"] = {"focal_cuda": {"peak_memory": 2.0}}
    (verdict,) = verdicts(_document(a, b), "cpu", targets=(target,))
    assert (verdict.scenario, verdict.word, verdict.unmeasured) == ("b", "NO", 0)
    assert "1 not measured" in report.verdict_table(verdicts(_document(a), "cpu", targets=(target,)))


def test_verdicts_say_when_something_was_not_measured_and_leave_other_devices_out():
    results = _document(_result("a", focal_cuda=1.0))
    target = Target(("a",), "speedup", "other", at_least=2)
    assert [v.word for v in verdicts(results, "cpu", targets=(target,))] == ["not measured"]
    assert verdicts(results, "cuda", targets=(target,)) == []


def test_targets_name_scenarios_and_candidates_that_exist():
    for target in TARGETS:
        assert (target.at_least is None) != (target.at_most is None)
        planned = {run.scenario for run in plan(target.device) if run.dtype == target.dtype}
        for name in target.scenarios:
            named = {target.of, target.against} - {None}
            assert named <= set(SCENARIOS[name].candidates_on(target.device)), (target, name)
            assert name in planned, (target, name)
            assert not target.quantity.endswith("of_copy") or "copy_" in SCENARIOS[name].candidates


def test_every_option_and_relative_is_held_to_the_oracle():
    for group, names in (("options", OPTIONS), ("relatives", RELATIVES)):
        assert set(names) == {name for name, scenario in SCENARIOS.items() if scenario.group == group}
    for device in ("cpu", "cuda"):
        for quantity in ("loss_error", "gradient_error"):
            held = [t.scenarios for t in TARGETS if (t.device, t.quantity, t.of) == (device, quantity, "focal_cuda")]
            assert {*OPTIONS, *RELATIVES} <= {name for names in held for name in names}


def test_options_relatives_and_mining_have_targets_of_their_own():
    """Each with a line: the worst of several would hide the others."""
    found = {t.scenarios[0]: t for t in TARGETS if len(t.scenarios) == 1 and t.device == "cpu"}
    for name in ("options-detection-all", "options-segmentation-all"):
        assert (found[name].quantity, found[name].against, found[name].at_most) == ("time", PLAIN, 1.3)
    for name in MINING:
        assert (found[name].quantity, found[name].against, found[name].at_most) == ("time", PLAIN, 2)
    assert found["options-segmentation-soft"].at_least == 10
    assert {found[name].at_least for name in RELATIVES} == {15}
    for name in (*OPTIONS, *RELATIVES):
        assert (PLAIN in SCENARIOS[name].candidates) == (name in OPTIONS and name != "options-segmentation-soft")


def _compared(name, group, **times):
    fields = {
        "title": f"Title of {name}",
        "group": group,
        "shape": [4, 2],
        "bytes": {"logits": 32, "targets": 8, "inference": 40, "training": 72},
        "baseline": "Python original",
        "compiled": None,
    }
    return {**_result(name, **times), **fields}


def test_options_and_relatives_have_tables_of_their_own():
    option = _compared("o", "options", focal_cuda=1.25, focal_cuda_s_plain=1.0)
    again = _compared("o", "options", focal_cuda=3.0, focal_cuda_s_plain=2.0)
    relative = _compared("r", "relatives", focal_cuda=1.0, Python_s_original=16.0)
    table = report.group_table([option, {**again, "dtype": "bfloat16"}])
    assert "time / plain" in table and "1.25" in table and "1.50" in table and "Title of o, bfloat16" in table
    assert "16x" in report.group_table([relative]) and "time / plain" not in report.group_table([relative])

    document = {"scenarios": {"o": option, "o-reused": {**again, "memory": "reused"}, "r": relative}}
    for scenario in document["scenarios"].values():
        scenario["date"] = "2026-01-01"
    facts = {"device": "cpu", "model": "A CPU", "threads": 2, "clock": "", "load": 0.0, "torch": "", "commit": ""}
    document["environment"] = {**facts, "focal_cuda": "", "cpu_capability": "v4"}
    text = report.readme_section({"a-cpu": document}, "pictures")
    assert text.count("| scenario ") == 2
    (line,) = (line for line in text.splitlines() if line.startswith("| Title of o"))
    assert "| 1.25 / 1.50 " in line
    assert text.index("With options") < text.index("Relatives of") < text.index("| Title of r")


def test_what_an_option_moves_is_not_said_of_the_plain_loss():
    scenario = _compared("o", "options", focal_cuda=2.0, focal_cuda_s_plain=1.0, copy_=1.0)
    for label in ("focal_cuda", PLAIN):
        scenario["candidates"][label].update(loss_error=0.0, gradient_error=0.0)
    for candidate in scenario["candidates"].values():
        candidate["training"].update(p20=1.0, p80=1.0)
    lines = {line.split("  ")[0]: line for line in report.scenario_table("o", scenario).splitlines()}
    assert "%" in lines["focal_cuda"] and "%" not in lines[PLAIN]
