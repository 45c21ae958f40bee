"""What the CRC-32 of bytes that follow each other is, from their own. Without reading them again.

A CRC-32 is the remainder of a polynomial over GF(2); bytes that follow multiply it by x^8 each.
Remainders are ints as zlib gives them: bit 31 is the coefficient of x^0, bit 0 that of x^31.
"""

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
_X_TO_THE_8 = 1 << 23


def joined(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of A + B from that of A, that of B, and the number of bytes of B."""
    return _product(first, _power(length)) ^ second


@lru_cache(maxsize=256)
def _power(length: int) -> int:
    """Return x^(8 length)."""
    power, square = _ONE, _X_TO_THE_8
    while length:
        if length & 1:
            power = _product(power, square)
        square = _product(square, square)
        length >>= 1
    return power


def _product(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
