"""Numbers as texts, and tables of texts in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd


def number(value: float, form: str) -> str:
    """A number by its format specification; nothing for NaN."""
    return "" if math.isnan(value) else format(value, form)


def plus_minus(mean: float, deviation: float, form: str) -> str:
    """A mean and its standard deviation, "88.61 ± 0.15"; without what is NaN."""
    text = number(mean, form)
    return text if math.isnan(deviation) else f"{text} ± {deviation:{form.lstrip('+')}}"


def markdown(texts: pd.DataFrame, left: Iterable[str]) -> str:
    """A table in GitHub's Markdown.

    Args:
        texts: strings, with headings as columns.
        left: headings of columns of words; the others hold numbers, flush right.
    """
    align = ["left" if heading in left else "right" for heading in texts.columns]
    return texts.to_markdown(index=False, disable_numparse=True, colalign=align)
