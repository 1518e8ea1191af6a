"""The arithmetic of ``samclip plan``."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from services.cache import shared
from services.planning import command, sizes
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


def test_shards_are_also_bounded_by_what_one_can_read() -> None:
    found = plan(
        Load(images_per_s=0, clicks_per_s=1500), COSTS, Choices(utilisation=0.5, shard_gb=1000)
    )
    assert found.redis_shards == 3
    assert found.redis_mbit_s == pytest.approx(12_000)


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


@pytest.mark.parametrize(
    ("load", "choices", "words"),
    [
        (Load(images_per_s=0), Choices(), "load is zero"),
        (Load(images_per_s=1, hit_ratio=1.5), Choices(), "hit ratio is 1.5"),
        (Load(images_per_s=-1), Choices(), "must not be negative"),
        (Load(images_per_s=1), Choices(utilisation=0), "utilisation is 0"),
        (Load(images_per_s=1), Choices(redis_gb=0), "more than 0 GB"),
        (Load(images_per_s=1), Choices(shard_gb=0), "more than 0 GB"),
        (Load(images_per_s=1, keep_hours=-1), Choices(), "keep_hours is -1: .* not be negative"),
        (Load(images_per_s=math.inf), Choices(), "images_per_s is inf"),
        (Load(images_per_s=1), Choices(redis_gb=math.nan), "redis_gb is nan"),
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
    bench.unlink()
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


@pytest.mark.parametrize(
    ("load", "choices", "redis_gb", "hours", "shards"),
    [
        (Load(images_per_s=100, hit_ratio=0.8), Choices(redis_gb=18), 18, 0.25, 1),
        (Load(images_per_s=0.1), Choices(), 8.64, 24, 1),  # they expire after a day
        (Load(images_per_s=1, hit_ratio=1), Choices(), 0, 24, 0),
        (Load(images_per_s=10, hit_ratio=0.9, keep_hours=10), Choices(shard_gb=20), 36, 10, 2),
        (Load(images_per_s=1, keep_hours=99), Choices(), 86.4, 24, 4),
    ],
)
def test_redis_holds_images_as_long_as_it_has_room_or_as_long_as_asked(
    load: Load, choices: Choices, redis_gb: float, hours: float, shards: int
) -> None:
    found = plan(load, COSTS, choices)
    assert found.redis_gb == pytest.approx(redis_gb)
    assert found.hours_in_redis == pytest.approx(hours)
    assert found.redis_shards == shards


def test_the_cost_of_each_part_adds_up() -> None:
    costs = replace(COSTS, gpu_images_per_s=100.0)
    choices = Choices(core_hour=1, gb_hour=0.1, gpu_hour=5, redis_gb=10)
    found = plan(Load(images_per_s=50), costs, choices, on_gpu=True)
    assert found.usd_of_cores == pytest.approx(730 * found.cores)
    assert found.usd_of_gpus == pytest.approx(730 * 5)
    assert found.usd_of_memory == pytest.approx(73 * found.memory_gb)
    assert found.usd_of_redis == pytest.approx(730)
    parts = found.usd_of_cores + found.usd_of_gpus + found.usd_of_memory + found.usd_of_redis
    assert found.usd_a_month == pytest.approx(parts)


def test_the_lifetime_is_that_of_the_service() -> None:
    assert shared.LIFETIME_S[pb.SAM] == sizes.LIFETIME_HOURS * 3600


def test_the_example_of_its_help_gets_a_plan_that_one_would_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example, *_) = re.findall(r"samclip (plan .*--hit-ratio 0.*)", command.parser().format_help())
    assert cli.main(example.split()) == 0
    shown = capsys.readouterr().out
    assert re.search("hit ratio .* 0.8\n", shown)
    assert re.search("redis gb .* 25\n", shown)
    assert re.search("usd of redis .* 91.25\n", shown)
    assert cli.main([*example.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["redis_gb"] == found["assumed"]["redis_gb"] == 25
    assert found["usd_a_month"] < 300
