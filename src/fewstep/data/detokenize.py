"""Undoing the word-by-word spacing of corpora that are used to compare perplexities.

Older corpora are published as words with spaces between; models are trained on text as people write it.
Each function turns a document of one such corpus back, by the rules of the MDLM evaluation (Sahoo et
al., 2024, section 5.1), so that perplexities compare; those rules for WikiText, PTB and LM1B go back to
Megatron-LM. AG News and OpenWebText are read as they are. One published WikiText rule, which matches
nothing but the characters of its own pattern, is left out.
"""

import re
from collections.abc import Callable
from typing import Literal

DetokenizerName = Literal["wikitext", "ptb", "lm1b", "lambada", "scientific-papers"]

Rule = tuple[str | re.Pattern[str], str]
"""What to look for, everywhere in the text, and what to put in its place."""


def applied(rules: list[Rule], text: str) -> str:
    """Return `text` after one rule after another; the order of the published rules matters."""
    for wanted, instead in rules:
        text = text.replace(wanted, instead) if isinstance(wanted, str) else wanted.sub(instead, text)
    return text


def closed_up(marks: str) -> list[Rule]:
    """Return rules that take away the space before each mark that has one on both sides."""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


def tight_pairs(*pairs: str) -> list[Rule]:
    """Return rules that take away all space just inside brackets and quotation marks."""
    return [
        (re.compile(rf"\{left}\s*([^\{right}]*?)\s*\{right}"), rf"{left}\1{right}") for left, right in pairs
    ]


WIKITEXT: list[Rule] = [
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *closed_up(":;.!?,"),
    *tight_pairs("()", "[]", "{}", '""', "''"),
    *((" ".join("=" * level), "=" * level) for level in (4, 3, 2)),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
PTB: list[Rule] = [
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    *[(" N ", " 1 ")] * 2,  # the second for numbers that share a space with one before
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
]
LM1B: list[Rule] = [
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" !$"), "!"),
    *closed_up(",:;"),
    (" / ", "/"),
    *((re.compile(rf"{mark} ([^{mark}]+) {mark}"), rf"{mark}\1{mark}") for mark in "\"'"),
    (re.compile(r"\( ([^()]+) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]+) \]"), r"[\1]"),
    ("$ ", "$"),
    ("£ ", "£"),
]


def wikitext(text: str) -> str:
    """Return a document of WikiText-2 or WikiText-103 as prose."""
    return applied(WIKITEXT, text)


def ptb(text: str) -> str:
    """Return a sentence of the Penn Treebank as prose."""
    return applied(PTB, text)


def lm1b(text: str) -> str:
    """Return a sentence of the One Billion Word benchmark as prose."""
    return applied(LM1B, text)


def lambada(text: str) -> str:
    """Return a passage of LAMBADA with straight quotation marks, on a line of its own."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def scientific_papers(text: str) -> str:
    """Return an article of the PubMed or arXiv corpus as prose."""
    return lm1b(wikitext(text))


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
    "lambada": lambada,
    "scientific-papers": scientific_papers,
}
