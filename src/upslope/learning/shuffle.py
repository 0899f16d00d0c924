"""A random permutation of samples, with a few integer operations per sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PRNGKeyArray

SHUFFLE_ROUNDS = 24
"""Number of rounds. With 16 rounds, permutations of 5 numbers are still measurably non-uniform. With 24 rounds, not
even permutations of 8 numbers are."""


def shuffle(key: PRNGKeyArray, n: int) -> Int32[Array, "n"]:
    """A random permutation of 0 … n−1, computed without sorting by enciphering each index with the key.

    A Feistel network permutes the b-bit numbers, b = ⌈log₂ n⌉. Each half in turn is XORed with a hash of the other
    half and a random round key. Numbers outside 0 … n−1 are enciphered again until they are inside ("cycle walking"),
    which terminates because a permutation is a union of cycles. Source: Black & Rogaway 2002, Ciphers with arbitrary
    finite domains, sections 4 and 5.
    """
    bits = max(2, (n - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = jnp.uint32((1 << low_bits) - 1), jnp.uint32((1 << (bits - low_bits)) - 1)
    keys = jax.random.bits(key, (SHUFFLE_ROUNDS,))

    def encipher(x: Array) -> Array:
        low, high = x & low_mask, x >> low_bits
        for number in range(0, SHUFFLE_ROUNDS, 2):
            high ^= scramble(low, keys[number]) & high_mask
            low ^= scramble(high, keys[number + 1]) & low_mask
        return (high << low_bits) | low

    start = encipher(jnp.arange(n, dtype=jnp.uint32))
    walked = jax.lax.while_loop(lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, encipher(x), x), start)
    return walked.astype(jnp.int32)


def scramble(x: Array, key: Array) -> Array:
    """A 32-bit hash whose low bits depend on all of x and the key (the finaliser of Appleby's MurmurHash3)."""
    x ^= key
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
