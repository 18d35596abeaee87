"""Sentences that stand on numbers: how a number is written, and claims that stop the write-up when they no longer hold."""

import math

import pandas as pd

from asymlib.significance import FLIPS

SIGNIFICANT = 0.05
FLOOR = 1 / (FLIPS + 1)  # no p of the paired randomisation test can be smaller


class ClaimError(AssertionError):
    """A sentence of the write-up is no longer true of the tables."""


def claim(condition: object, sentence: str) -> str:
    """The sentence, if the condition holds; else a ClaimError that quotes it. NaN and an empty comparison do not hold."""
    if not bool(condition) or (isinstance(condition, float) and math.isnan(condition)):
        raise ClaimError(f"the tables no longer say this: {sentence}")
    return sentence


def number(value: float, digits: int = 3) -> str:
    """0.227, −0.004; '' for NaN; never −0.000."""
    if pd.isna(value):
        return ""
    text = f"{value:.{digits}f}"
    return (text[1:] if text.startswith("-") and not text.strip("-0.") else text).replace("-", "−")


def percent(value: float) -> str:
    """A change that is in percent already: '+6.5 %', '−0.3 %', '0.0 %' for all that rounds to it, '' for NaN."""
    text = number(value, 1)
    return text and f"{'' if text.startswith('−') or text == '0.0' else '+'}{text} %"


def share(value: float) -> str:
    """A ratio as whole percent: 0.974 is 97 %."""
    return f"{number(100 * value, 0)} %"


def p_text(p: float, raw: float = math.nan) -> str:
    """'p = 0.062', 'p < 0.001'; 'p < 0.0016' where `raw`, before correction, is the least that the random flips can give."""
    if pd.isna(p):
        return ""
    if raw > FLOOR * (1 + 1e-9) or math.isnan(raw):
        return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    step = 10 ** (math.floor(math.log10(p)) - 1)
    return f"p < {math.ceil(p / step - 1e-6) * step:.2g}"


def change(row: pd.Series) -> str:
    """A system's change against the frozen encoder, with the paired 95 % interval of the difference, in percent."""
    low, high = (number(100 * row[f"difference_{end}"] / row["baseline"], 1) for end in ("low", "high"))
    return f"{percent(row['delta_percent'])} [{low}, {high}]"


def verdict(row: pd.Series) -> str:
    """'tied', 'above' or 'below', by the paired test."""
    if pd.isna(row["p_value"]) or row["p_value"] >= SIGNIFICANT:
        return "tied"
    return "above" if row["delta_percent"] > 0 else "below"


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows of text as a Markdown table; the keys of the first row are the head. 'none' without rows."""
    if not rows:
        return "none"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
