"""The benchmark's peers do the requested work, or are left out."""

import json
from pathlib import Path

import pytest

from benchmarks import traffic
from benchmarks.servers import work
from benchmarks.servers.server import Absent, check

SCORES = {"a cat": 0.6, "a dog": 0.4}


@pytest.mark.parametrize("scores", [{"a cat": 0.1, "a dog": 0.9}, {"a cat": 0.6}, {}])
def test_a_peer_with_other_answers_is_left_out(scores: dict[str, float]) -> None:
    check("x", {"a cat": 0.61, "a dog": 0.39}, SCORES)
    with pytest.raises(Absent, match="x answers"):
        check("x", scores, SCORES)


@pytest.mark.parametrize("kind", ["Documented", "Library"])
def test_a_batch_answers_each_in_its_place(
    kind: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MAX_BATCH", 1)  # shortens the warm-up
    given = {"CHECKPOINT": str(tiny_checkpoint), "DTYPE": "float32", "WORK": kind}
    model = work.chosen({f"BENCH_PEER_{name}": value for name, value in given.items()})
    visit = next(traffic.working_day(1))
    asked = [model.read(traffic.to_peer(ask, in_form=False)[1]) for ask in visit]
    answers = model.run(asked)
    assert [next(iter(answer)) for answer in answers] == ["scores", *["mask"] * 3, "hits"]
    assert answers[0]["scores"].keys() == set(traffic.LABELS)
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len(answers[-1]["hits"]) == 10
    json.dumps(answers)
