from pathlib import Path

import pytest

from tests.photographs import draw, jpg, write_shard
from training.evaluation.suite import Options, limited, own_samples, part_of


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, "abcdefg"), (9, "abcdefg"), (3, "ace"), (1, "a"), (0, "")]
)
def test_a_limit_spreads_over_the_whole(limit: int | None, kept: str):
    assert limited("abcdefg", limit) == list(kept)


def test_what_cannot_be_used_takes_no_place(tmp_path: Path):
    encoded = jpg(draw(0).image_HW3)
    samples = {str(i): {"jpg": encoded, "json": b'{"odd": %d}' % (i % 2)} for i in range(6)}
    write_shard(tmp_path / "camvid/val-0.tar", samples)
    options = Options(root=tmp_path, limit=2)
    kept = own_samples(options, "camvid", usable=lambda sample: sample.info["odd"])
    assert [sample.key for sample in kept] == ["1", "3"]


def keys_of(root: Path, **options: str) -> list[str]:
    return [sample.key for sample in own_samples(Options(root=root, **options), "camvid")]


def test_a_third_of_the_validation_photographs_is_for_choosing(tmp_path: Path):
    """The parts are disjoint and complete, and do not depend on the other photographs."""
    sample = {"jpg": jpg(draw(0).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "a/camvid/val-0.tar", {f"photo_{i}": sample for i in range(60)})
    write_shard(tmp_path / "b/camvid/val-0.tar", {f"photo_{i}": sample for i in range(30, 90)})
    select, report = (keys_of(tmp_path / "a", part=part) for part in ("select", "report"))
    assert sorted(select + report) == sorted(keys_of(tmp_path / "a", part="all"))
    assert 10 < len(select) < 30
    common = set(select) & set(keys_of(tmp_path / "b"))
    assert common == set(keys_of(tmp_path / "b", part="select")) & set(keys_of(tmp_path / "a"))


def test_a_part_belongs_to_a_key_for_ever():
    chosen = [key for key in "0123456789" if part_of(key) == "select"]
    assert chosen == ["2", "5", "6", "7"]


def test_the_training_split_has_no_parts(tmp_path: Path):
    sample = {"jpg": jpg(draw(0).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "camvid/train-0.tar", {str(i): sample for i in range(6)})
    options = Options(root=tmp_path, part="select")
    assert len(own_samples(options, "camvid", "train")) == 6


def test_a_part_without_photographs_is_said(tmp_path: Path):
    write_shard(tmp_path / "camvid/val-0.tar", {"0": {"jpg": jpg(draw(0).image_HW3)}})
    assert keys_of(tmp_path, part="report") == ["0"]
    with pytest.raises(ValueError, match="no usable val photographs in part select"):
        keys_of(tmp_path, part="select")
