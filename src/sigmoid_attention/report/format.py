"""Formats numbers for readers: digits, units, and words for missing numbers."""

import math

from sigmoid_attention.lab.statistics import Interval

ABSENT = "not measured"

# Factors to the base unit, largest first; the first factor not above the value is used.
SECONDS = ((60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))

# By kind and unit of a difference: the level of no difference, the sign, the suffix, the factor of
# the shown number, and the digits after the point (without an interval, and at most).
_SHAPES = {
    ("ratio", ""): (1.0, "", "×", 1.0, 2, 3),
    ("difference", ""): (0.0, "+", "", 1.0, 3, 4),
    ("difference", "fraction"): (0.0, "+", " points", 100.0, 1, 2),
    ("difference", "bytes"): (0.0, "+", " MiB", 2.0**-20, 2, 2),
}


def quantity(value: float, unit: str) -> str:
    """`value` with its unit: seconds and bytes are scaled, fractions are percentages.

    Example:
        >>> quantity(0.00123, "seconds"), quantity(3 * 2**20, "bytes"), quantity(0.914, "fraction")
        ('1.23 ms', '3.00 MiB', '91.4%')
        >>> quantity(2.3456, "bits/byte"), quantity(float("nan"), "bits/byte")
        ('2.346', 'not measured')
    """
    if not math.isfinite(value):
        return ABSENT
    if unit == "fraction":
        return f"{_minus(f'{100 * value:.1f}')}%"
    if unit == "seconds":
        return _scaled(value, SECONDS)
    if unit == "bytes":
        return _scaled(value, BYTES)
    if unit in ("bits/byte", "bits/token", "nats/token"):
        return _minus(f"{value:.3f}")
    return plain(value)


def plain(value: float) -> str:
    """A number without a unit, to four significant digits; integers in full.

    Example:
        >>> plain(812345), plain(0.0123456), plain(-3.5)
        ('812,345', '0.01235', '−3.5')
    """
    if value == int(value):
        return _minus(f"{int(value):,}")
    return _minus(f"{value:.4g}")


def difference(interval: Interval, unit: str, kind: str) -> tuple[str, str]:
    """The difference of two arms, and its interval with the same digits.

    The interval sets the digits: two significant ones of its half width; further ones are noise.

    Example:
        >>> difference(Interval(0.03412, 0.0213, 0.0469, 3), "bits/byte", "difference")
        ('+0.034', '+0.021 to +0.047')
        >>> difference(Interval(1.2345, 1.1, 1.4, 3), "seconds", "ratio")
        ('1.23×', '1.10 to 1.40')
        >>> difference(Interval(-0.02, float("nan"), float("nan"), 1), "fraction", "difference")
        ('−2.0 points', '')
        >>> difference(Interval(-0.0157, -0.0310, -0.0004, 9), "fraction", "difference")
        ('−1.57 points', '−3.10 to −0.04')
        >>> difference(Interval(-0.0001, -0.014, 0.013, 3), "bits/byte", "difference")
        ('+0.000', '−0.014 to +0.013')
    """
    if not math.isfinite(interval.mean):
        return ABSENT, ""
    same, sign, suffix, factor, digits, most = _SHAPES.get((kind, unit), _SHAPES[kind, ""])
    mean, low, high = (factor * x for x in (interval.mean, interval.low, interval.high))
    if interval.bounded and high > low:
        digits = min(max(1 - math.floor(math.log10((high - low) / 2)), 0), most)
        # If rounding moves a bound to the level of no difference, one more digit is shown.
        digits += any(round(x, digits) == same != x for x in (low, high))
    middle, bottom, top = (_minus(f"{x:{sign}z.{digits}f}") for x in (mean, low, high))
    return f"{middle}{suffix}", f"{bottom} to {top}" if interval.bounded else ""


def tick(value: float, unit: str) -> str:
    """`value` with its unit in as few digits as possible, for the labels of an axis.

    Example:
        >>> tick(0.003, "seconds"), tick(2.0**21, "bytes"), tick(0.5, "fraction")
        ('3 ms', '2 MiB', '50%')
    """
    number, space, name = quantity(value, unit).partition(" ")
    percent = "%" if number.endswith("%") else ""
    number = number.removesuffix("%")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + percent + space + name


def signed(value: float) -> str:
    """A difference with its sign, to two significant digits; zero has no sign.

    Example:
        >>> signed(0.0214), signed(-1.5), signed(0.0)
        ('+0.021', '−1.5', '0')
    """
    return _minus(f"{value:+.2g}") if value else "0"


def token_count(length: float) -> str:
    """A sequence length as a tick label: 512, 1k, 16k (k = 1024).

    Example:
        >>> token_count(512), token_count(4096), token_count(1536)
        ('512', '4k', '1,536')
    """
    count = round(length)
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else f"{count:,}"


def compact(value: float) -> str:
    """A large count in few characters (k = 1000), for the labels of an axis.

    Example:
        >>> compact(300_000), compact(1_500_000), compact(20), compact(2.5)
        ('300k', '1.5M', '20', '2.5')
    """
    factor, letter = next((f for f in ((1e6, "M"), (1e3, "k")) if abs(value) >= f[0]), (1.0, ""))
    return plain(value / factor) + letter


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    factor, name = next((u for u in units if abs(value) >= u[0]), units[-1])
    scaled = value / factor
    # Three significant digits without an exponent, also for large numbers.
    digits = max(2 - math.floor(math.log10(abs(scaled))), 0) if scaled else 0
    return f"{_minus(f'{scaled:.{digits}f}')} {name}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
