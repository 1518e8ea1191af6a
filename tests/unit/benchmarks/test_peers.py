"""The benchmark's peers do the requested work, or are left out."""

import json
from pathlib import Path

import pytest

from benchmarks import traffic
from benchmarks.servers import work
from benchmarks.servers.server import Absent, check
from samclip_core.io import checkpoint

SCORES = {"a cat": 0.6, "a dog": 0.4}


def test_our_library_gives_our_scores() -> None:
    check("x", {"a cat": 0.61, "a dog": 0.39}, SCORES, same_model=True)
    check("x", {"a cat": 0.1, "a dog": 0.9}, SCORES, same_model=False)


@pytest.mark.parametrize("scores", [{"a cat": 0.1, "a dog": 0.9}, {"a cat": 0.6}, {}])
def test_a_peer_with_other_answers_is_left_out(scores: dict[str, float]) -> None:
    with pytest.raises(Absent, match="x answers"):
        check("x", scores, SCORES, same_model=True)


@pytest.mark.parametrize("kind", [work.Documented, work.Library])
def test_a_batch_answers_each_in_its_place(
    kind: type[work.Work], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_PEER_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.setattr(work, "WIDTH", 32)  # of its vectors
    monkeypatch.setenv("BENCH_PEER_DTYPE", "float32")
    monkeypatch.setattr(work, "MAX_BATCH", 1)  # shortens the warm-up
    model = kind()
    visit = next(traffic.working_day(1))
    asked = [model.read(traffic.to_peer(ask, in_form=False)[1]) for ask in visit]
    answers = model.run(asked)
    assert [next(iter(answer)) for answer in answers] == ["scores", *["mask"] * 3, "hits"]
    assert answers[0]["scores"].keys() == set(traffic.LABELS)
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len(answers[-1]["hits"]) == 10
    json.dumps(answers)


def test_the_peers_search_as_wide_vectors_as_the_bundled_checkpoint_makes() -> None:
    config = json.loads((Path(checkpoint.resolve("edge")) / "config.json").read_text())
    assert config["text_dim"] == work.WIDTH
