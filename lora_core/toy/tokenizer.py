"""A CLIP byte-pair tokenizer learned from the captions: their words become whole, any other word is spelled from the pieces they share."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")  # CLIP's own cut, for lower-case English
_START, _END = "<|startoftext|>", "<|endoftext|>"
_LENGTH = 77


def byte_alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes (Radford et al. 2019, GPT-2 `bytes_to_unicode`)."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = (chr(256 + n) for n in itertools.count())
    return [chr(b) for b in keep] + [next(spare) for b in range(256) if b not in keep]


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts, cut and lower-cased as CLIP does."""
    return Counter(word for text in texts for word in _WORD.findall(text.lower()))


def learn_merges(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Byte-pair encoding carried on until every word is one piece: always the most frequent pair, the first in the alphabet among equals."""
    words = {w: [*w[:-1], w[-1] + "</w>"] for w in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in words.items():
            words[word] = _joined(pieces, best)


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with every occurrence of the pair made one, from the left."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def write_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """Learns from the texts and writes the folder that transformers' CLIPTokenizer reads."""
    merges = learn_merges(count_words(texts))
    letters = byte_alphabet()
    vocabulary = [*letters, *(c + "</w>" for c in letters)]
    vocabulary += dict.fromkeys(a + b for a, b in merges if a + b not in vocabulary)
    vocabulary += [_START, _END]
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH, "do_lower_case": True}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=1))
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=1))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
