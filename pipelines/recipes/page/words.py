"""Numbers as the page says them."""

__all__ = ["MINUS", "elapsed", "number", "percent"]

MINUS = "\N{MINUS SIGN}"


def elapsed(seconds: float) -> str:
    """Seconds in words: "0.4 s", "42 s", "3.4 min", "2 h 05 min"."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 99.95 else f"{round(minutes) // 60} h {round(minutes) % 60:02} min"


def percent(part: float, *, sign: bool = False) -> str:
    """A part of the whole in percent, without the unit: 0.6149 is "61.5"; with `sign`, "+61.5"."""
    text = f"{100 * part:{'+' if sign else ''}.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


def number(value: float) -> str:
    """Any number, short: "0.0412", "1,250", "12.3 M"."""
    sign, value = MINUS if value < 0 else "", abs(value)
    if value >= 1e6:
        return f"{sign}{value / 1e6:,.1f} M"
    return sign + (f"{value:,.0f}" if value >= 1000 or value.is_integer() else f"{value:.3g}")
