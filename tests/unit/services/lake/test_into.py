"""What a batch has made is added to a collection without a service."""

from pathlib import Path

import pytest
from samclip import cli

from samclip_core.errors import InvalidRequest
from samclip_core.model import SamClip
from services.lake import into, job
from services.lake.part import run_part
from services.retrieval.engine import open_index
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.settings import Settings
from tests.lake import planned
from tests.photographs import draw, jpg


@pytest.fixture
def lake(tmp_path: Path, tiny_model: SamClip) -> str:
    """Return the place of a batch of three images, one with an id that no item may have."""
    folder, out = tmp_path / "photos", str(tmp_path / "out")
    for number, name in enumerate(("1.jpg", "2.jpg", f"{'long/' * 60}3.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpg(draw(number, 60, 80).image_HW3))
    plan = planned(out, folder, tiny_model, embed=True, regions=True)
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 1)
    return out


def test_its_images_and_objects_are_found_and_others_are_named(
    lake: str, tiny_model: SamClip, settings: Settings
) -> None:
    for replaced in (0, 2):  # an interrupted run is repeated
        done = into.append(lake, "ann@pets", True, settings)
        assert (done.indexed, done.replaced) == (2, replaced)
        (reason,) = done.errors.values()
        assert "expected 1 to 256" in reason
    every = Collections(open_index(settings), tiny_model.digest, tiny_model.config.text_dim)
    assert every.of_tenant("").describe() == []
    pets = every.of_tenant("ann").get("pets")
    query_D = pets.vector("2.jpg")
    assert [hit.id for hit in pets.search(Query(query_D, 9))] == ["2.jpg", "1.jpg"]
    assert {hit.id for hit, _ in pets.search_objects(Query(query_D, 9))} == {"1.jpg", "2.jpg"}
    assert {"source", "key", "thumbnail"} <= {*pets.items("", 1)[0].metadata}


def test_a_name_that_no_collection_may_have_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("../pets", "ann+concepts@pets", "a@b@pets", ""):
        with pytest.raises(InvalidRequest, match="expected a name of 1 to 64 letters"):
            into.check(name)
    monkeypatch.setattr(job, "run", None)
    assert cli.main(["batch", "one", "--out", "lake", "--embed", "--into", "a/b"]) == 1
    assert "collection 'a/b': expected a name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["batch", "one", "--out", "lake", "--regions", "--into", "pets"])
    assert "--into stores the vectors of --embed" in capsys.readouterr().err
