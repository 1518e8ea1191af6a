"""A cache entry with damaged bytes is a miss; it never yields a different array."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.cache.entry import Entry, contract, name, pack, unpack

KEYS = st.binary(min_size=32, max_size=32).map(bytes.hex)
CONTRACTS = st.builds(
    contract,
    KEYS,
    st.sampled_from([384, 1024]),
    st.sampled_from(["float32", "bfloat16"]),
)
NAMES = st.builds(name, CONTRACTS, KEYS, st.sampled_from([pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED]))
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9)), st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
)
ENTRIES = st.builds(
    Entry.of,
    arrays.arrays(np.float32, SHAPES, elements=st.floats(-1000, 1000, width=32)),
    st.builds(Geometry, *[st.integers(1, 2**32 - 1)] * 3),
)


@given(NAMES, ENTRIES)
def test_an_unpacked_entry_equals_the_packed_one(name, entry):
    found = unpack(name, pack(name, entry))
    assert found is not None
    np.testing.assert_array_equal(found.array, entry.array)
    assert (found.array.dtype, found.geometry) == (np.float16, entry.geometry)
    assert not found.array.flags.writeable
    assert pack(name, found) == pack(name, entry)


def test_a_changed_byte_or_another_length_is_a_miss():
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    whole = pack("n", Entry.of(array, Geometry(10, 20, 32)))
    for place in range(len(whole)):
        for flipped in (1, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flipped
            assert unpack("n", bytes(damaged)) is None
        assert unpack("n", whole[:place]) is None
        assert unpack("n", whole + whole[:place] + b"\0") is None


@given(NAMES, NAMES, ENTRIES, ENTRIES)
def test_an_entry_under_another_name_is_a_miss(name, other, entry, another):
    if name != other:
        assert unpack(other, pack(name, entry)) is None
    left, right = pack(name, entry), pack(name, another)
    if left[4:20] != right[4:20]:  # combine the head of one with the body of the other
        assert unpack(name, left[:96] + right[96:]) is None or left[96:] == right[96:]


@given(NAMES, st.binary(max_size=300))
def test_other_bytes_are_a_miss(name, data):
    assert unpack(name, data) is None
    assert unpack(name, b"SCE1" + data) is None
