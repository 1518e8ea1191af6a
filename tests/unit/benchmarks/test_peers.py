"""The benchmark's peers do the requested work, or are left out."""

import json
from pathlib import Path

import pytest

from benchmarks import traffic
from benchmarks.lines import Line
from benchmarks.load import Outcome
from benchmarks.peers import work
from benchmarks.peers.server import Absent, check
from benchmarks.side_by_side import ALL_NEW, BEST, DAY, TABLE, _lines
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


def test_ratios_are_to_the_best_peer_of_each_round() -> None:
    columns = (*ALL_NEW, DAY)
    rates = {"ours": (6, 8), "A, as documented": (3, 2), "B, as documented": (2, 4)}
    rates["A, our library inside"] = (30, 30)
    turns = {
        name: [dict.fromkeys(columns, Outcome([1.0], rate)) for rate in rounds]
        for name, rounds in rates.items()
    }
    found = {line.name: line for line in _lines(turns)}
    assert found[TABLE, BEST, DAY] == Line(TABLE, BEST, DAY, "×", [2, 2])
    assert found[TABLE, "ours / A, our library inside", DAY].rounds == pytest.approx([0.2, 8 / 30])


def test_the_peers_search_as_wide_vectors_as_the_bundled_checkpoint_makes() -> None:
    config = json.loads((Path(checkpoint.resolve("edge")) / "config.json").read_text())
    assert config["text_dim"] == work.WIDTH
