import struct

import numpy as np
import pytest
import xxhash
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from samclip_core.io import image
from services.cache import entry as entries
from services.cache.entry import Entry, at_size, computed, contract, name, pack, unpack
from services.request import wire
from tests.in_process import png

GEOMETRY = Geometry(10, 20, 32)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_contract_names_all_inputs_of_an_entry_except_the_image(monkeypatch):
    contracts = {
        contract("a", 384, "float32"),
        contract("b", 384, "float32"),
        contract("a", 512, "float32"),
        contract("a", 384, "bfloat16"),
        contract("a", 384, computed("float32", "")),  # torch
        contract("a", 384, computed("float32", "0" * 64)),
        contract("a", 384, computed("float32", "1" * 64)),
    }
    monkeypatch.setattr(entries, "PREPROCESS_VERSION", "another")
    contracts.add(contract("a", 384, "float32"))
    monkeypatch.setattr(entries, "LAYOUT", "another")
    contracts.add(contract("a", 384, "float32"))
    assert len(contracts) == 9


def test_files_have_keys_by_their_bytes_alone():
    pixels = png(100)
    other_pixels, other_encoding = png(101), pixels[:-12] + b"\0" * 4 + b"tEXt" + pixels[-12:]
    keys = {image.image_key(file) for file in (pixels, other_pixels, other_encoding)}
    names = {name("c", key, output) for key in keys for output in wire.FIELDS}
    assert len(names) == len(keys) * len(wire.FIELDS) == 15


def test_a_side_other_than_the_checkpoints_own_is_in_the_key():
    assert at_size("k", 384, 384) == "k"
    assert at_size("k", 336, 384) != at_size("k", 448, 384) != "k"


def test_the_outputs_of_an_image_lie_in_one_slot_of_a_cluster():
    tags = {name("c", "k", o).partition("{")[2].partition("}")[0] for o in wire.FIELDS}
    assert tags == {"k"}


def test_a_float32_array_is_rounded_once_into_a_copy():
    array = random(8, 3, 5)
    made = Entry.of(array, GEOMETRY)
    np.testing.assert_array_equal(made.array, array.astype(np.float16))
    array[:] = 0
    assert made.array.any()


def test_a_float16_array_becomes_the_entry_s_without_a_copy_and_is_read_only():
    array = random(4).astype(np.float16)
    made = Entry.of(array, GEOMETRY)
    assert made.array is array
    assert not array.flags.writeable


FIELDS = struct.Struct("<32s3I2B3IQ10x")  # a copy: existing entries in Redis must stay readable


@pytest.mark.parametrize(
    ("field", "value"),
    [(1, 0), (2, 0), (3, 0), (4, 1), (4, 2), (4, 255), (5, 2), (5, 0), (6, 9), (7, 0), (9, 11)],
)
def test_an_invalid_header_with_a_valid_checksum_is_a_miss(field, value):
    whole = pack("n", Entry.of(random(8, 3, 5), GEOMETRY))
    header = [*FIELDS.unpack_from(whole, 20)]
    header[field] = value
    rest = FIELDS.pack(*header) + whole[96:]
    assert unpack("n", b"SCE1" + xxhash.xxh3_128_digest(rest) + rest) is None


def test_a_squashed_picture_stays_one_from_the_cache():
    key = name("c", "key", pb.SAM_FINE)
    entry = Entry.of(np.ones((2, 3, 3), np.float16), Geometry(10, 30, 64, squash=True))
    assert unpack(key, pack(key, entry)).geometry == entry.geometry
