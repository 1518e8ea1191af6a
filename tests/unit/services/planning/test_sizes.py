"""The arithmetic of ``samclip plan``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from samclip import cli

from services.planning.sizes import (
    Choices,
    Costs,
    Load,
    PlanError,
    busy_cores,
    machines,
    plan,
)

COSTS = Costs(
    cores=2,
    new_image_cpu_s=0.1,
    known_image_cpu_s=0.002,
    click_cpu_s=0.03,
    encode_cpu_s=0.08,
    service_bytes=3e9,
    image_bytes_in_redis=1e6,
    redis_bytes_per_s=1e9,
)


def test_the_cores_of_all_three_kinds_add_up() -> None:
    load = Load(images_per_s=50, clicks_per_s=20, hit_ratio=0.8)
    assert busy_cores(load, COSTS) == pytest.approx(10 * 0.1 + 40 * 0.002 + 20 * 0.03)


def test_replicas_stay_below_the_utilisation() -> None:
    found = plan(Load(images_per_s=50), COSTS, Choices(utilisation=0.5))
    assert found.replicas == 5  # 5 busy cores, at one of two cores per machine
    assert found.cores == 10
    assert found.memory_gb == pytest.approx(15)
    assert found.gpus == 0


def test_redis_holds_what_is_encoded_while_it_is_kept() -> None:
    found = plan(Load(images_per_s=10, hit_ratio=0.9, keep_hours=10), COSTS, Choices(shard_gb=20))
    assert found.redis_gb == pytest.approx(36)
    assert found.redis_shards == 2
    assert found.redis_mbit_s == pytest.approx(8)


def test_shards_are_also_bounded_by_what_one_can_read() -> None:
    found = plan(
        Load(images_per_s=0, clicks_per_s=1500), COSTS, Choices(utilisation=0.5, shard_gb=1000)
    )
    assert found.redis_gb == 0
    assert found.redis_shards == 3


def test_known_images_are_not_sent() -> None:
    found = plan(Load(images_per_s=100, hit_ratio=0.75, image_bytes=1e6), COSTS)
    assert found.from_clients_mbit_s == pytest.approx(200)


def test_a_gpu_takes_over_the_encoding_alone() -> None:
    costs = replace(COSTS, gpu_images_per_s=100.0)
    load, choices = Load(images_per_s=250), Choices(utilisation=0.7)
    found = plan(load, costs, choices, on_gpu=True)
    assert found.gpus == 4
    assert found.busy_cores == pytest.approx(250 * 0.02)
    assert found.busy_cores < plan(load, costs, choices).busy_cores
    assert found.replicas == 4


def test_the_cost_is_of_cores_and_memory() -> None:
    choices = Choices(core_hour=1, gb_hour=0.1, utilisation=1)
    found = plan(Load(images_per_s=0, clicks_per_s=1), COSTS, choices)
    assert found.usd_a_month == pytest.approx(730 * (2 * 1 + 3 * 0.1))


@pytest.mark.parametrize(
    ("load", "choices", "words"),
    [
        (Load(images_per_s=0), Choices(), "load is zero"),
        (Load(images_per_s=1, hit_ratio=1.5), Choices(), "hit ratio is 1.5"),
        (Load(images_per_s=-1), Choices(), "must not be negative"),
        (Load(images_per_s=1), Choices(utilisation=0), "utilisation is 0"),
    ],
)
def test_loads_that_cannot_be(load: Load, choices: Choices, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(load, COSTS, choices)


def test_a_gpu_needs_its_figures() -> None:
    with pytest.raises(PlanError, match="a machine that has one"):
        plan(Load(images_per_s=1), COSTS, on_gpu=True)


def test_figures_that_are_missing_are_named() -> None:
    with pytest.raises(PlanError, match=r"click_cpu_s, encode_cpu_s.*make bench"):
        Costs.of({"cores": 2, "new_image_cpu_s": 0.1, "known_image_cpu_s": 0.1})


def test_the_command_reads_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"costs": vars(COSTS)}))
    words = ["plan", "--images-per-second", "50", "--hit-ratio", "0.5", "--bench", str(bench)]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicas"] == 2
    assert cli.main(words) == 0
    assert "redis shards" in capsys.readouterr().out


def test_the_command_says_what_to_do_without_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--images-per-second", "50", "--bench", str(tmp_path / "none.json")]
    assert cli.main(words) == 1
    assert "make bench" in capsys.readouterr().err


@pytest.mark.parametrize("machine", ["2-cores", "16-cores"])
def test_the_command_works_without_a_benchmark(
    machine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--images-per-second", "100", "--machine", machine]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["busy_cores"] == pytest.approx(6.55)
    assert found["replicas"] == (5 if machine == "2-cores" else 1)
    assert cli.main(words) == 0
    assert machines()[machine]["about"] in capsys.readouterr().out


def test_the_larger_reference_machine_is_derived_from_the_measured_one() -> None:
    measured, derived = machines()["2-cores"], machines()["16-cores"]
    assert {name for name in measured if measured[name] != derived[name]} == {"about", "cores"}
    assert "derived" in derived["about"]
    assert "measured" in measured["about"]
