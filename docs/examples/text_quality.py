# SPDX-License-Identifier: Apache-2.0
"""Extract plain text from markup and measure its quality: the part of the example that does not depend on pipelines.

The signals and thresholds are those of two published corpora, as far as they apply to text and not to web
pages:

Gopher: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
    arXiv:2112.11446, appendix A.1.1: the quality filter, and Table A1: repetition.
C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    JMLR 21(140), section 2.2.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

__all__ = ["RULES", "SIGNALS", "Rule", "broken_rule", "clean", "measure"]

# --- cleaning -----------------------------------------------------------------------------------------------

# All repetitions within a line are bounded, so that a text of only brackets does not take quadratic time.
_FENCE = re.compile(r"\s*(```|~~~)")
_DIRECTIVE = re.compile(r"\s*\.\. ")  # reStructuredText: ".. image:: x" and the indented lines below it
_SESSION = re.compile(r"\s*(>>> |\$ )")
_RULE_LINE = re.compile(r"[\s=\-~^\"'*+#_|:.]{3,}")  # underlines of headings, borders of tables
_LINK_TARGET = re.compile(r"\s*\[[^\]]{1,200}\]:\s")
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"!\[[^\[\]\n]{0,500}\](\([^()\n]{0,1000}\)|\[[^\[\]\n]{0,200}\])"), ""),  # image
    (re.compile(r"\[([^\[\]\n]{0,500})\](\([^()\n]{0,1000}\)|\[[^\[\]\n]{0,200}\])"), r"\1"),  # link
    (re.compile(r"`([^`<]{1,200})<[^`>]{1,1000}>`__?"), r"\1"),  # reStructuredText link
    (re.compile(r":[a-z:]{2,30}:`~?([^`]{1,200})`"), r"\1"),  # reStructuredText role
    (re.compile(r"\|[\w .-]{1,100}\|_{0,2}"), ""),  # reStructuredText substitution, such as a badge
    (re.compile(r"</?[a-zA-Z][^<>]{0,2000}>"), " "),  # HTML tag
    (re.compile(r"https?://[^\s)>\]]{1,2000}"), ""),
    (re.compile(r"`{1,2}([^`]{1,200})`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"(\*{1,3})(?=\S)([^*\n]{1,500})(?<=\S)\1"), r"\2"),
    (re.compile(r"^ {0,3}#{1,6} +", re.MULTILINE), ""),  # heading
    (re.compile(r"[ \t]+"), " "),
)


def clean(markup: str) -> str:
    """Return text without Markdown, reStructuredText, or HTML markup, and without code blocks.

    This uses patterns and not a grammar, because descriptions mix all three formats.
    """
    lines = _prose_lines(_without_comments(markup))
    text = "\n".join(line for line in lines if not _RULE_LINE.fullmatch(line))
    text = html.unescape(text)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    paragraphs = re.split(r"\n\s*\n", text)
    kept = ("\n".join(filter(None, map(str.strip, paragraph.split("\n")))) for paragraph in paragraphs)
    return "\n\n".join(filter(None, kept))


def _without_comments(text: str) -> str:
    """Return the text without HTML comments."""
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        kept.append(text[at:start])
        at = end + len("-->")
    return "".join(kept) + text[at:]


def _prose_lines(text: str) -> list[str]:
    """Return the lines that are neither code nor instructions to a renderer."""
    kept: list[str] = []
    fence = ""
    block_indent: int | None = None  # of the line that began a skipped indented block
    for line in text.expandtabs(4).splitlines():
        indent = len(line) - len(line.lstrip())
        marker = _FENCE.match(line)
        if fence or marker:
            mark = marker.group(1) if marker else ""
            fence = fence if fence and mark != fence else ("" if fence else mark)
            kept.append("")  # a skipped block separates paragraphs
            continue
        if block_indent is not None:
            if not line.strip() or indent > block_indent:
                continue
            block_indent = None
        opens_block = _DIRECTIVE.match(line) is not None
        if not (opens_block or _SESSION.match(line) or _LINK_TARGET.match(line)):
            kept.append(line)
            opens_block = line.rstrip().endswith("::")
        if opens_block:
            kept.append("")
            block_indent = indent
    return kept


# --- signals ------------------------------------------------------------------------------------------------

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "●", "○", "▪", "-", "*", "+")
_ELLIPSES = ("...", "…")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]?(?=\s|$)")

SIGNALS = (
    "word_count",
    "mean_word_length",
    "symbol_to_word_ratio",
    "bullet_line_ratio",
    "ellipsis_line_ratio",
    "alphabetic_word_ratio",
    "stop_words",
    "duplicate_line_ratio",
    "duplicate_line_character_ratio",
    "sentences",
    "curly_brackets",
    "lorem_ipsum",
)


def measure(text: str) -> dict[str, float]:
    """Return the signals of a text by name, as in `SIGNALS`: all 0 for an empty text. Ratios are from 0 to 1."""
    words, lines = text.split(), [line for line in text.split("\n") if line.strip()]
    if not words:
        return dict.fromkeys(SIGNALS, 0.0)
    repeated = _repeated(lines)
    symbols = max(text.count("#"), sum(text.count(mark) for mark in _ELLIPSES))
    lower = text.lower()
    values = (
        len(words),
        sum(map(len, words)) / len(words),
        symbols / len(words),
        sum(line.startswith(_BULLETS) for line in lines) / len(lines),
        sum(line.endswith(_ELLIPSES) for line in lines) / len(lines),
        sum(any(map(str.isalpha, word)) for word in words) / len(words),
        len(_STOP_WORDS.intersection(lower.split())),
        len(repeated) / len(lines),
        sum(map(len, repeated)) / sum(map(len, lines)),
        len(_SENTENCE_END.findall(text)),
        text.count("{"),
        lower.count("lorem ipsum"),
    )
    return {name: float(value) for name, value in zip(SIGNALS, values, strict=True)}


def _repeated(lines: list[str]) -> list[str]:
    """Return the lines that repeat an earlier line."""
    seen: set[str] = set()
    return [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]


# --- rules --------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A rule that a good text satisfies.

    Attributes:
        reason: Name under which texts that break the rule are counted.
        signal: The signal to check.
        least: Smallest good value.
        most: Largest good value.
        source: Where the threshold comes from.
    """

    reason: str
    signal: str
    least: float
    most: float
    source: str


_ANY = float("inf")
RULES = (
    Rule("too_short", "word_count", 50, _ANY, "Gopher A.1.1"),
    Rule("too_long", "word_count", 0, 100_000, "Gopher A.1.1"),
    Rule("odd_word_length", "mean_word_length", 3, 10, "Gopher A.1.1"),
    Rule("too_many_symbols", "symbol_to_word_ratio", 0, 0.1, "Gopher A.1.1, for # and ellipses"),
    Rule("mostly_bullets", "bullet_line_ratio", 0, 0.9, "Gopher A.1.1"),
    Rule("mostly_ellipses", "ellipsis_line_ratio", 0, 0.3, "Gopher A.1.1"),
    Rule("too_few_letters", "alphabetic_word_ratio", 0.8, 1, "Gopher A.1.1"),
    Rule("too_few_stop_words", "stop_words", 2, _ANY, "Gopher A.1.1"),
    Rule("repeated_lines", "duplicate_line_ratio", 0, 0.30, "Gopher Table A1"),
    Rule("repeated_lines", "duplicate_line_character_ratio", 0, 0.20, "Gopher Table A1"),
    Rule("too_few_sentences", "sentences", 3, _ANY, "C4 2.2"),
    Rule("curly_brackets", "curly_brackets", 0, 0, "C4 2.2, as a sign of code"),
    Rule("lorem_ipsum", "lorem_ipsum", 0, 0, "C4 2.2"),
)


def broken_rule(signals: dict[str, float]) -> Rule | None:
    """Return the first rule that a text with these signals breaks, or None for a good text."""
    return next((rule for rule in RULES if not rule.least <= signals[rule.signal] <= rule.most), None)
