"""Identity of a pair: stable, independent of order, and in DataComp's format."""

import hashlib

import numpy as np

from clipsan.stages.samples import RawPair, hash_uid, seeded_hash, uid_array, uid_rows


def test_uid_is_shard_and_key_and_its_hash_is_blake2b():
    pair = RawPair("part/00001.tar", "000042", b"x", "a cat")
    assert pair.uid == "part/00001.tar/000042"
    assert pair.uid_hex == hashlib.blake2b(b"part/00001.tar/000042", digest_size=16).hexdigest()


def test_a_data_comp_uid_is_kept():
    pair = RawPair("a.tar", "k", b"x", "c", native_uid="0123456789abcdef" * 2)
    assert pair.uid_hex == "0123456789abcdef" * 2


def test_draws_hang_on_the_uid_alone():
    uids = [f"s/{i}" for i in range(100)]
    forward = dict(zip(uids, seeded_hash(uids, 3, "x"), strict=True))
    backward = dict(zip(uids[::-1], seeded_hash(uids[::-1], 3, "x"), strict=True))
    assert forward == backward


def test_draws_of_other_seeds_and_purposes_are_unrelated():
    uids = [f"s/{i}" for i in range(2000)]
    one = seeded_hash(uids, 0, "a").astype(np.float64)
    for other in (seeded_hash(uids, 1, "a"), seeded_hash(uids, 0, "b")):
        assert abs(np.corrcoef(one, other.astype(np.float64))[0, 1]) < 0.1


def test_draws_are_uniform():
    numbers = seeded_hash([str(i) for i in range(20_000)], 0, "u") / 2.0**64
    counts = np.histogram(numbers, 10, (0, 1))[0]
    assert ((counts - 2000.0) ** 2 / 2000).sum() < 33  # chi-square, 9 degrees: 0.0001


def test_uid_array_is_sorted_and_its_halves_make_the_uid_again():
    hexes = [hash_uid(str(i)) for i in range(50)]
    array = uid_array([uid_rows(hexes[:20]), uid_rows(hexes[20:])])
    assert array.dtype == np.dtype("u8,u8")
    assert [f"{int(a):016x}{int(b):016x}" for a, b in array] == sorted(hexes)


def test_uids_with_one_high_half_are_sorted_by_the_low_one():
    hexes = [f"{high:016x}{low:016x}" for high in (7, 2**63, 1) for low in (9, 0, 2**64 - 1)]
    assert [f"{int(a):016x}{int(b):016x}" for a, b in uid_array([uid_rows(hexes)])] == sorted(hexes)
    assert len(uid_array([])) == 0
