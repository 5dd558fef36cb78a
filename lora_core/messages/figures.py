"""Figures as a person reads them: three significant digits."""

from __future__ import annotations

import math

DIGITS = 3


def figure(number: float) -> str:
    """0.0412, 4.52, 1230, 1.2e-05; nan and inf as such."""
    return f"{float(f'{number:.{DIGITS}g}'):.15g}" if math.isfinite(number) else str(float(number))


def percent(share: float) -> str:
    """A share of 1, as in 4.12 %."""
    return f"{figure(100 * share)} %"
