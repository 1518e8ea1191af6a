"""`samclip plan` against the measurements in benchmarks/RESULTS.md."""

import re

import pytest

from services.planning.sizes import Choices, Costs, Load, plan
from tests.checkout import ROOT

RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text()
COSTS = Costs.reference("2-cores")


def measured(table: str, row: str) -> dict[str, float]:
    """Return the medians of a row of a table, by the names of the columns."""
    (columns,) = re.findall(rf"^\| {table} \|(.*)\|$", RESULTS, re.MULTILINE)
    start = RESULTS.index(columns)
    (cells, *_) = re.findall(rf"^\| {row} \|(.*)\|$", RESULTS[start:], re.MULTILINE)
    pairs = zip(columns.split("|"), cells.split("|"), strict=True)
    return {name.strip(): float(cell.split()[0]) for name, cell in pairs if cell.strip()}


def test_the_reference_machine_is_the_one_in_the_results() -> None:
    costs = measured("CPU time per request", "all processes")
    decoding = measured("CPU time per request", "decoding")
    for ours, ms in (
        (COSTS.new_image_cpu_s, costs["new images, 32 clients"]),
        (COSTS.known_image_cpu_s, costs["known images, 32 clients"]),
        (COSTS.click_cpu_s, costs["clicks, 32 clients"]),
        (COSTS.encode_cpu_s, costs["bare loop"] - decoding["bare loop"]),
    ):
        assert ours * 1000 == pytest.approx(ms, rel=0.15)


@pytest.mark.parametrize("clients", [8, 32])
def test_a_machine_takes_the_new_images_that_it_was_measured_to_take(clients: int) -> None:
    rate = measured("requests per second", "ours")[f"all new, {clients} clients"]
    full = Choices(utilisation=1)
    assert plan(Load(images_per_s=rate * 0.85), COSTS, full).replicas == 1
    assert plan(Load(images_per_s=rate * 1.15), COSTS, full).replicas == 2
