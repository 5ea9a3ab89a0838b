"""Does the key schedule give what its page says, and does nothing else reach it?

The reference here is Threefry-2x32 written from the paper, checked against the vectors its authors
published (Random123, `kat_vectors`), and the page `docs/keys.md`, whose table is read by the test.
"""

import hashlib
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode import keys
from model import errors

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "keys.md").read_text("utf-8")
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key, counter):
    """Salmon et al. 2011, section 3: four rounds between additions of the key, twenty in all."""
    first, second = (np.asarray(word, np.uint64) for word in key)
    schedule = (first, second, first ^ second ^ np.uint64(0x1BD11BDA))
    mask = np.uint64(0xFFFFFFFF)
    x, y = (np.asarray(word, np.uint64) for word in counter)
    x, y = (x + first) & mask, (y + second) & mask
    for block in range(5):
        for turn in ROTATIONS[block % 2]:
            x = (x + y) & mask
            y = ((y << np.uint64(turn)) | (y >> np.uint64(32 - turn))) & mask ^ x
        x = (x + schedule[(block + 1) % 3]) & mask
        y = (y + schedule[(block + 2) % 3] + np.uint64(block + 1)) & mask
    return x, y


def reference_key(seed, request_id, sample, position, stream):
    digest = hashlib.sha256(request_id.encode()).digest()
    key = (seed >> 32, seed & 0xFFFFFFFF)
    for word in (
        int.from_bytes(digest[:4], "big"),
        int.from_bytes(digest[4:8], "big"),
        sample,
        position,
        {"sample": 0, "accept": 1, "residual": 2, "draft": 3, "xtc": 4, "beam": 5}[stream],
    ):
        key = threefry(key, (0, word))
    return key


def reference_uniform(a, b):
    """The page's formula: sums and products of float64 are exact here, and the only rounding is the last."""
    high, low = (np.asarray(word, np.uint64) >> np.uint64(9) for word in (a, b))
    high, low = high.astype(np.float64), low.astype(np.float64)
    fine = high * 2.0**-23 + (2 * low + 1) * 2.0**-47
    return np.where(high < 2**22, fine, (2 * high + 1) * 2.0**-24).astype(np.float32)


def reference_noise(key, vocabulary):
    words = threefry(key, (0, np.arange(vocabulary)))
    return -np.log(-np.log1p(-reference_uniform(*words).astype(np.float64)))


def vectors():
    for line in PAGE.splitlines():
        if found := re.fullmatch(
            r"\| (\d+) \| `(.*)` \| (\d+) \| (\d+) \| (\w+) \| `(.*)` \|(.*)\|", line
        ):
            seed, request_id, sample, position, stream, key, rest = found.groups()
            yield (int(seed), request_id, int(sample), int(position), stream), key, rest.split("|")


VECTORS = list(vectors())


def written(key):
    return " ".join(f"{int(word):08x}" for word in key)


def data(*where):
    return jax.random.key_data(keys.token_key(*where)).tolist()


@pytest.mark.parametrize(
    "key, counter, result",
    [
        ("00000000 00000000", "00000000 00000000", "6b200159 99ba4efe"),
        ("ffffffff ffffffff", "ffffffff ffffffff", "1cb996fc bb002be7"),
        ("13198a2e 03707344", "243f6a88 85a308d3", "c4923a9c 483df7a0"),
    ],
)
def test_the_reference_threefry_gives_its_authors_vectors(key, counter, result):
    key, counter = ([int(word, 16) for word in words.split()] for words in (key, counter))
    assert written(threefry(key, counter)) == result


def test_the_page_has_vectors_for_every_stream_and_for_words_beyond_32_bits():
    assert {where[4] for where, *_ in VECTORS} == set(keys.STREAMS)
    assert any(where[0] >= 2**32 for where, *_ in VECTORS)
    assert len(VECTORS) == 12


def test_the_page_numbers_the_streams_as_the_code_does_and_names_its_version():
    table = dict(re.findall(r"^\| (\w+) \| (\d+) \| [^|]*\|$", PAGE, re.MULTILINE))
    assert {name: int(number) for name, number in table.items()} == keys.STREAMS
    assert PAGE.startswith(f"# The key schedule, version {keys.VERSION}\n")


@pytest.mark.parametrize("where, key, rest", VECTORS, ids=lambda v: str(v)[:24])
def test_a_published_vector_holds_for_the_code_and_for_the_reference(where, key, rest):
    assert written(data(*where)) == key
    assert written(reference_key(*where)) == key
    first, second = (float(number) for number in rest[:2])
    drawn, of_many = (int(number) for number in rest[2:])
    logits = -np.arange(97, dtype=np.float32) / 8
    ours = np.asarray(keys.gumbel(keys.token_key(*where)[None], 50_257))[0]
    for noise in (ours, reference_noise(reference_key(*where), 50_257)):
        np.testing.assert_allclose(noise[:2], [first, second], atol=6e-6)
        assert np.argmax(logits + noise[:97]) == drawn
        assert np.argmax(noise) == of_many


def test_a_beams_key_is_that_of_its_token_folded_with_its_number_as_published():
    published = re.findall(r"`(\w{8} \w{8})`", PAGE[PAGE.index("The row of `beam`") :])
    row = keys.row_key(0, "0", 0)
    three = keys.of_beams(jnp.stack([row] * 3), jnp.array([1, 1, 1]), jnp.array([0, 1, 2]))
    assert [written(key) for key in jax.random.key_data(three).tolist()] == published
    for number, key in enumerate(published):
        assert written(threefry(reference_key(0, "0", 0, 1, "beam"), (0, number))) == key


def test_noise_equals_the_formula_in_double_precision_to_the_last_bits():
    key = keys.token_key(5, "x", 1, 7)
    ours = np.asarray(keys.gumbel(key[None], 50_257))[0]
    formula = reference_noise(jax.random.key_data(key).tolist(), 50_257)
    np.testing.assert_allclose(ours, formula, rtol=3e-7, atol=3e-7)


def test_each_of_the_five_coordinates_changes_the_key():
    base = (0, "a", 0, 1, "sample")
    others = [
        (1, *base[1:]),
        (0, "b", *base[2:]),
        (0, "a", 1, 1, "sample"),
        (0, "a", 0, 2, "sample"),
    ]
    others += [(*base[:4], stream) for stream in keys.STREAMS if stream != "sample"]
    words = [written(data(*where)) for where in [base, *others]]
    assert len(set(words)) == len(words) == 10


def test_swapping_sample_and_position_or_high_and_low_seed_changes_the_key():
    assert data(0, "a", 1, 2) != data(0, "a", 2, 1)
    assert data(1, "a", 0, 0) != data(2**32, "a", 0, 0)


def test_a_number_and_its_digits_are_the_same_id():
    assert data(0, 7, 0, 1) == data(0, "7", 0, 1) == data(0, np.int64(7), 0, 1)


def test_the_root_key_is_the_one_jax_makes_of_the_same_seed():
    for seed in (0, 7, 2**31, 2**32 - 1):
        theirs = jax.random.key_data(jax.random.key(np.uint32(seed), impl="threefry2x32"))
        assert keys.seed_words(seed).tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "0", None])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(
        errors.BadInput, match=re.escape(f"seed is {seed!r}; it must be a whole number")
    ):
        keys.row_key(seed, "a", 0)


@pytest.fixture
def strange_settings():
    """JAX configured as a user may have it; a control shows that it does change other random numbers."""
    before = jax.random.bits(jax.random.key(0), (2, 5))
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        key = jax.random.key(0, impl="threefry2x32")
        assert (jax.random.bits(key, (2, 5)) != before).any()
        assert jax.random.key_data(jax.random.key(0)).shape == (4,)
        yield


def test_no_jax_setting_changes_keys_or_noise(strange_settings):
    where, key, _ = VECTORS[-1]
    assert written(data(*where)) == key
    ours = np.asarray(keys.gumbel(keys.token_key(*where)[None], 97))[0]
    np.testing.assert_allclose(ours, reference_noise(reference_key(*where), 97), atol=1e-6)


def rows(count):
    return jnp.stack([keys.row_key(3, f"request {i}", i % 2) for i in range(count)])


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_noise_of_a_row_is_the_same_bits_in_any_row_of_any_batch_of_any_vocabulary():
    noise = jax.jit(keys.gumbel, static_argnums=1)
    whole = bits(noise(rows(7), 1009))
    for order, size in itertools.product([[3], [6, 3], [1, 2, 3, 0, 5]], [1009, 997, 1]):
        part = bits(noise(rows(7)[np.array(order)], size))
        assert (part == whole[order, :size]).all()


def test_noise_is_the_same_bits_compiled_and_not():
    assert (
        bits(jax.jit(keys.gumbel, static_argnums=1)(rows(3), 101))
        == bits(keys.gumbel(rows(3), 101))
    ).all()


def test_rows_at_one_position_have_different_noise():
    folded = keys.fold(rows(5), jnp.full(5, 11))
    noise = np.asarray(keys.gumbel(folded, 13))
    assert len(np.unique(noise)) == noise.size


def test_fold_gives_a_batch_the_keys_that_token_key_gives_one_by_one():
    positions = jnp.array([4, 4, 9])
    folded = keys.fold(rows(3), positions, "draft")
    for i, position in enumerate([4, 4, 9]):
        one = keys.token_key(3, f"request {i}", i % 2, position, "draft")
        assert (jax.random.key_data(folded[i]) == jax.random.key_data(one)).all()


def tail(noise, batches):
    """How many of batches x 17 x 131,071 noises exceed 16: e^-16 of them should."""
    one = jax.jit(lambda key: (noise(jax.random.split(key, 17)) > 16).sum())
    return sum(int(one(jax.random.key(i, impl="threefry2x32"))) for i in range(batches))


# Expected 1.11e8 e^-16 = 12.5. With odds of 1e-6 a right sampler has none, or 36 and more.
def test_the_tail_is_as_heavy_as_it_should_be_where_the_default_of_jax_has_none():
    assert 1 <= tail(lambda keys_B: keys.gumbel(keys_B, 131_071), batches=50) <= 35
    low = jax.vmap(lambda key: jax.random.gumbel(key, (131_071,), mode="low"))
    assert tail(low, batches=2) == 0
    assert float(low(jax.random.split(jax.random.key(1, impl="threefry2x32"), 17)).max()) < 16


EXTREME = np.array(
    [[0, 0], [2**32 - 1, 2**32 - 1], [2**31 - 1, 2**32 - 1], [2**31, 0], [2**30, 2**32 - 1]],
    np.uint32,
)


def test_uniform_numbers_are_the_bits_that_the_page_says():
    words = np.random.RandomState(0).randint(0, 2**32, (10_007, 2), np.uint64).astype(np.uint32)
    words[: len(EXTREME)] = EXTREME
    words[1000:2000, 0] >>= 21
    ours = np.asarray(keys.uniform(jnp.asarray(words)))
    assert (ours == reference_uniform(words[:, 0], words[:, 1])).all()
    assert (ours > 0).all()
    assert (ours < 1).all()


def test_the_largest_noise_is_above_32_and_all_of_it_is_finite():
    noise = np.asarray(keys.noise(jnp.asarray(EXTREME[:4])))
    low, middle = -np.log(24 * np.log(2)), -np.log(np.log(2))
    np.testing.assert_allclose(noise, [47 * np.log(2), low, middle, middle], rtol=1e-6)


def test_a_few_entries_of_the_noise_are_those_of_the_whole():
    keys_B = jnp.stack([keys.row_key(3, name, 1) for name in ("a", "b")])
    ids_BN = np.array([[0, 16, 5, 12_347], [12_346, 5, 7, 0]])
    some_BN = np.asarray(jax.jit(keys.gumbel_of)(keys_B, ids_BN))
    every_BV = np.asarray(jax.jit(keys.gumbel, static_argnums=1)(keys_B, 12_348))
    np.testing.assert_array_equal(some_BN, np.take_along_axis(every_BV, ids_BN, axis=1))
    assert (some_BN[0] != some_BN[1]).all()
