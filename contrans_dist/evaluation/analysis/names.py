"""Values and strengths as a report writes them."""

COST = "perplexity"
"""What tells the cost of steering: the metric, its benchmark, and the folder of a sweep that measures it."""
VALIDATION = "validation"
"""The folder of a sweep over validation items."""


def number(value: float, as_percent: bool, digits: int | None = None) -> str:
    """A value for people: `78 %`, `1.2 %`, `14.3`. `digits` fixes the decimals."""
    if not as_percent:
        return f"{value:.{2 if digits is None else digits}f}"
    share = 100 * value
    decimals = (1 if 0 < abs(share) < 9.95 or 99 < share < 100 else 0) if digits is None else digits
    return f"{share:.{decimals}f}\u202f%"


def strength_text(strength: float) -> str:
    """A strength without needless zeros: `2`, `0.5`."""
    return f"{strength:g}"
