"""What the benchmark reads off a running service."""

from tests.bench.service import mean_ms, stages_of

METRICS = """\
# HELP samclip_stage_seconds Time in one stage of a request.
samclip_stage_seconds_sum{stage="decode"} 1.5
samclip_stage_seconds_bucket{le="0.1",stage="decode"} 3.0
samclip_stage_seconds_count{stage="decode"} 3.0
samclip_stage_seconds_sum{stage="queue"} 0.0
samclip_stage_seconds_count{stage="queue"} 0.0
samclip_inflight{service="BackboneService"} 1.0
"""


def test_stages_are_sums_and_counts() -> None:
    assert stages_of(METRICS) == {"decode": (1.5, 3), "queue": (0, 0)}


def test_means_are_of_what_ran_in_between() -> None:
    before = {"decode": (1.0, 2.0), "queue": (1.0, 1.0)}
    after = {"decode": (1.5, 7.0), "queue": (1.0, 1.0), "execute": (0.2, 4.0)}
    assert mean_ms(before, after) == {"decode": 100, "execute": 50}
