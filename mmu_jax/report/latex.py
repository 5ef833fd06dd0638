"""Tables for a paper: LaTeX that needs the package booktabs and nothing else."""

import math
import re

from mmu_jax.report.tables import Table

ACCENTED = set("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŒœŠšŽžŁł")
FIT = 7  # columns of numbers beside one another
SIGNS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "–": "--", "·": r"$\cdot$", "≥": r"$\geq$"}
SIGNS |= {sign: f"\\{sign}" for sign in "%&#_{}$"}
SIGNS |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}


def escape(text: str) -> str:
    """Text as LaTeX prints it; letters that the fonts of pdflatex do not have become question marks.

    >>> print(escape("mask_random ↑ 95 %"))
    mask\\_random $\\uparrow$ 95 \\%
    """
    signed = re.sub(r"(?<![\w-])[-+](?=\d)", lambda m: f"${m[0]}$", "".join(SIGNS.get(c, c) for c in text))
    return "".join(c if ord(c) < 0x80 or c in ACCENTED else "?" for c in signed)


def _lines(words: list[str], side: str, rest: str) -> str:
    """A cell of several lines, those after the first set as ``rest`` says."""
    first, *others = (escape(word) for word in words)
    if not others:
        return first
    shown = r"\\".join([first, *(f"{{{rest} {line}}}" for line in others)])
    return rf"\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{shown}\end{{tabular}}"


def _cell(text: str) -> str:
    """A number over its interval over what else is said of it."""
    return _lines(re.split(r" (?=\[)| · |, (?=[a-z])", text), "r", r"\tiny")


def _tabular(rows: Table) -> list[str]:
    (corner, *titles), *body = rows
    head = [escape(corner), *(_lines(title.split(" ", 1), "r", "") for title in titles)]
    lines = [head, *([escape(name), *map(_cell, cells)] for name, *cells in body)]
    first, *others = (" & ".join(line) + r" \\ \addlinespace[\defaultaddspace]" for line in lines)
    columns = rf"\begin{{tabular}}{{@{{}}l{'r' * len(titles)}@{{}}}}"
    return [columns, r"\toprule", first, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"]


def table(rows: Table, caption: str) -> str:
    """A floating table over all columns of a page; intervals stand under their numbers, so that seven columns fit 12 cm.

    More than these are divided evenly into floats, each with the names of the rows.

    Args:
      rows: the first is the head.
      caption: text, not LaTeX.
    """
    parts = math.ceil(max(len(rows[0]) - 1, 1) / FIT)
    each = math.ceil((len(rows[0]) - 1) / parts)
    floats = []
    for i in range(parts):
        lines = _tabular([[row[0], *row[1 + i * each : 1 + (i + 1) * each]] for row in rows])
        said = f"{caption} Part {i + 1} of {parts}." if parts > 1 else caption
        head = [r"\begin{table*}", rf"\caption{{{escape(said)}}}\smallskip"]
        head.append(r"\centering\scriptsize\setlength{\tabcolsep}{2pt}")
        floats.append("\n".join([*head, *lines, r"\end{table*}"]))
    return "\n\n".join(floats)
