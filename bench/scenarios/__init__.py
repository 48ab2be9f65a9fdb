"""The scenarios, by name, in the order in which they run and are shown."""

from bench.scenario import Scenario
from bench.scenarios import detection, rows, segmentation, size, small

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for module in (detection, segmentation, rows, small, size) for scenario in module.SCENARIOS
}
