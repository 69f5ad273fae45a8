"""`fewstep cloze`: a set of passages whose last word needs the whole passage, made from any text.

The form is that of LAMBADA (Paperno et al., 2016): some sentences, and the beginning of one more, whose
last word is to be guessed. There, people guessed it from the passage and not from its last sentence;
here a judge does. A judge guesses a word if each of its tokens is the likeliest after those before it.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.data.corpora import Corpus
from fewstep.data.packing import tokenize_corpus
from fewstep.data.tokenizer import load_tokenizer
from fewstep.evaluation.judge import SMOLLM2, Judge, load_judge
from fewstep.models.checkpoint import resolve
from fewstep.sampling.constraints import encode

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
SENTENCE = re.compile(r"\S.*?[.?!][\"'\u201d\u2019)]*(?=\s|$)", re.DOTALL)
COMMON_WORDS = 200
"""So many of the most frequent words of a text are no last words: they are guessed from grammar alone."""
REPORT_EVERY = 100

Span = tuple[int, int]
"""Where a word begins in a text, and where it ends."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences, `text`, and where those are whose last words may be asked for."""

    text: str
    sentences: tuple[Span, ...]


def cloze(
    output: str,
    *,
    corpus: Corpus = Corpus(),
    tokenizer: str = "sotu-tokenizer",
    validation_fraction: float = 0.05,
    judge: str = SMOLLM2,
    max_passages: int = 200,
    min_tokens: int = 64,
    max_tokens: int = 200,
    seed: int = 0,
) -> Path:
    """Write passages whose last word a judge guesses from the whole, not from the last sentence alone.

    The last word also occurs earlier, before the last sentence. The file has one passage a line, in
    `text`, as `lambada` reads it.

    Args:
        output: The JSONL file to write.
        corpus: Text to take passages from.
        tokenizer: That of the models to measure: a name of what ships, a directory or a repository.
        validation_fraction: Share of its documents to take: those that training holds out by the same
            share; 1 for all.
        judge: "smollm2", a causal model of the Hugging Face hub, or the directory of one.
        max_passages: Passages to write at most.
        min_tokens: Tokens before the last sentence, at least.
        max_tokens: Tokens of a passage at most.
        seed: Of the order in which passages are tried.

    Raises:
        ValueError: if a setting is out of range, there is no judge, or no passage is left.
    """
    if max_passages < 1 or not 1 <= min_tokens < max_tokens:
        raise ValueError(
            f"max_passages is {max_passages}, min_tokens {min_tokens} and max_tokens {max_tokens}; "
            "max_passages and min_tokens must be at least 1, and max_tokens more than min_tokens"
        )
    units = load_tokenizer(resolve(tokenizer))
    documents = held_out_documents(corpus, units, validation_fraction)
    passages = [passage for text in documents for passage in cut(text, units, min_tokens, max_tokens)]
    common = common_words(documents)
    scorer = load_judge(judge)
    order = torch.randperm(len(passages), generator=seeds.generator(seed)).tolist()
    kept: dict[int, str] = {}
    for tried, number in enumerate(order, start=1):
        text = shortened(passages[number], scorer, common)
        if text is not None:
            kept[number] = text
        if len(kept) == max_passages:
            break
        if tried % REPORT_EVERY == 0:
            logger.info("tried %d passages of %d, kept %d", tried, len(passages), len(kept))
    if not kept:
        raise ValueError(
            f"none of {len(passages)} passages of {corpus.source!r} has a last word that needs the context; "
            "give more text"
        )
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": kept[number]}, ensure_ascii=False) for number in sorted(kept)]
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    logger.info("wrote %d passages to %s", len(kept), path)
    return path


def held_out_documents(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, validation_fraction: float
) -> list[str]:
    """Return the documents that training with the same `tokenizer` and `validation_fraction` never reads.

    Raises:
        ValueError: if there is no such text.
    """
    validation = tokenize_corpus(
        corpus,
        tokenizer,
        validation_corpus=corpus if validation_fraction == 1 else None,
        validation_fraction=min(validation_fraction, 0.5),
        context_length=1,
    ).validation
    if not isinstance(validation, np.ndarray):
        raise ValueError("a cloze set is made from documents; leave out fields of prompts and responses")
    separators = np.flatnonzero(validation == tokenizer.eos_token_id)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in np.split(validation, separators)]


def cut(text: str, tokenizer: PreTrainedTokenizerBase, min_tokens: int, max_tokens: int) -> Iterator[Passage]:
    """Yield passages of `text` that do not overlap, as many sentences as `max_tokens` allow.

    Sentences behind the first `min_tokens` may be asked for.
    """
    start, num_tokens, asked = 0, 0, []
    for sentence in SENTENCE.finditer(text):
        begin, end = sentence.span()
        more = len(encode(tokenizer, sentence.group())) + 1  # for the space between
        if num_tokens + more > max_tokens:
            if asked:
                yield Passage(text[start : start + asked[-1][1]], tuple(asked))
            start, num_tokens, asked = begin, 0, []
        elif num_tokens >= min_tokens:
            asked.append((begin - start, end - start))
        num_tokens += more
    if asked:
        yield Passage(text[start : start + asked[-1][1]], tuple(asked))


def common_words(texts: Iterable[str]) -> set[str]:
    """Return the most frequent words of `texts`, in lower case."""
    counts = Counter(word.lower() for text in texts for word in WORD.findall(text))
    return {word for word, _ in counts.most_common(COMMON_WORDS)}


def shortened(passage: Passage, judge: Judge, common: set[str]) -> str | None:
    """Return `passage` up to the last word that will do; None if none will.

    It will do if it also occurs before its sentence, is not among the `common`, and the judge guesses it
    from the passage and not from its sentence alone.
    """
    text = passage.text
    candidates: list[tuple[Span, Span]] = []
    for sentence in passage.sentences:
        before = {word.lower() for word in WORD.findall(text[: sentence[0]])} - common
        words = WORD.finditer(text, *sentence)
        candidates += [(word.span(), sentence) for word in words if word.group().lower() in before]
    if not candidates:
        return None
    right = guessed(judge, text, [word for word, _ in candidates])
    likely = list(compress(candidates, right))
    for begin, end in reversed(passage.sentences):
        words = [(a - begin, b - begin) for (a, b), sentence in likely if sentence == (begin, end)]
        alone = guessed(judge, text[begin:end], words) if words else []
        needing = [last for (_, last), right in zip(words, alone, strict=True) if not right]
        if needing:
            return text[: begin + needing[-1]]
    return None


@torch.inference_mode()
def guessed(judge: Judge, text: str, words: list[Span]) -> list[bool]:
    """Return for each word of `text` whether the judge guesses it, having read what is before.

    A word whose tokens reach into its neighbours is not guessed.
    """
    encoded = judge.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
    inputs_1L = torch.tensor([[judge.prefix_token_id, *tokens[:-1]]], device=judge.model.device)
    logits_LV = judge.model(input_ids=inputs_1L, use_cache=False).logits[0]
    right = (logits_LV.argmax(-1).cpu() == torch.tensor(tokens)).tolist()
    results = []
    for start, end in words:
        own = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        whole = bool(own) and offsets[own[0]][0] >= start - 1 and offsets[own[-1]][1] == end
        results.append(whole and all(right[i] for i in own))
    return results
