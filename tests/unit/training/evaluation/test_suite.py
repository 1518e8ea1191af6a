from pathlib import Path

import pytest

from tests.photographs import draw, jpg, write_shard
from training.evaluation.suite import Options, limited, own_samples


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
