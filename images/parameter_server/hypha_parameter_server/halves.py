"""Conversions between float16 and float32.

NumPy converts one number at a time, and numbers below the smallest normal float16 thirty times slower than others.
Pseudo-gradients may be full of them. Processors are slow with denormal float32 numbers too.
"""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_VALUES: Final = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

# A float16 has an exponent of bias 15 and 10 bits of mantissa, a float32 one of bias 127 and 23 bits.
_SHIFT: Final = np.uint32(23 - 10)
_BIAS: Final = np.uint32((127 - 15) << 23)
_EXPONENT: Final = np.uint32(0xFF << 23)
_SMALLEST_NORMAL: Final = np.float32(2.0**-14)
_TO_ROUNDER: Final = np.uint32((int(_SHIFT) << 23) + (1 << 22))
_HALF: Final = np.float32(0.5)
_HALF_EXPONENT: Final = np.uint16(0x1F << 10)
_SIGN_AND_NUMBER: Final = np.uint32(0x8FFF_E000)
_SCALE: Final = np.float32(2.0**112)
_MOSTLY: Final = 0.97
"""The least share of normal numbers with which a multiplication is faster than the table."""


def widen(halves: Array, target: Array) -> None:
    """Copy float16 numbers to a float32 array."""
    numbers, bits = halves.view(np.uint16), target.view(np.uint32)
    exponents = np.bitwise_and(numbers, _HALF_EXPONENT, out=target.view(np.uint16)[: len(numbers)])
    if np.count_nonzero(exponents) < _MOSTLY * len(numbers) or exponents.max() == _HALF_EXPONENT:
        np.take(_VALUES, numbers, out=target, mode="clip")
        return
    # Read as float32 bits, a finite float16 is 2**112 times too small; the sign, extended, lies in four bits.
    np.copyto(bits, halves.view(np.int16), casting="unsafe")
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _SIGN_AND_NUMBER, out=bits)
    np.multiply(target, _SCALE, out=target)


def narrow(values: Array, target: Array, scratch: tuple[Array, Array]) -> None:
    """Round finite float32 numbers that a float16 can hold to the nearest float16, ties to even.

    Args:
        values: The numbers.
        target: A float16 array of the same length.
        scratch: Two float32 arrays of the same length.
    """
    rounded, other = scratch
    bits, other_bits = rounded.view(np.uint32), other.view(np.uint32)
    # Adding 1.5 * 2**13 times the number's power of two, and subtracting it, rounds to 11 bits. Below the smallest
    # normal float16, the last bit stays where it is for that one.
    np.bitwise_and(values.view(np.uint32), _EXPONENT, out=other_bits)
    np.maximum(other, _SMALLEST_NORMAL, out=other)
    np.add(other_bits, _TO_ROUNDER, out=other_bits)
    np.add(values, other, out=rounded)
    np.subtract(rounded, other, out=rounded)
    np.abs(rounded, out=rounded)
    # This maps the subnormal numbers to the exponent below the normal ones, with their mantissa as float16.
    np.add(rounded, _SMALLEST_NORMAL, out=other)
    np.multiply(other, _HALF, out=other)
    np.maximum(rounded, other, out=rounded)
    np.subtract(bits, _BIAS, out=bits)
    np.right_shift(bits, _SHIFT, out=bits)
    np.right_shift(values.view(np.uint32), np.uint32(16), out=other_bits)
    np.bitwise_and(other_bits, np.uint32(0x8000), out=other_bits)
    np.bitwise_or(bits, other_bits, out=bits)
    np.copyto(target.view(np.uint16), bits, casting="unsafe")
