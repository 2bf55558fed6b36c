"""The CLIP and T5 tokenizers of the shapes world, made from the words of its grammar."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from shapes.grammar import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Claim, Thing

# Not in the grammar, but likely in a prompt.
EXTRA_WORDS = (
    "photo", "of", "picture", "drawing", "with", "in", "shape", "shapes", "the", "to", "one",
    "next", "is", "there", "are", "empty",
)  # fmt: skip
CLIP_LENGTH, T5_LENGTH = 77, 32  # tokens a caption, as the encoders are trained


def words() -> list[str]:
    """Every word that a caption can have and a few others, a comma being one; sorted."""
    things = [Thing(c, s, n) for c in COLORS for s in SHAPES for n in (1, 2, 3, 4)]
    claims = [Claim((thing,)) for thing in things]
    pair = (things[0], things[1])
    claims += [Claim(pair, relation) for relation in RELATIONS]
    claims += [Claim((things[0],) * 3, background=name) for name in BACKGROUNDS]
    text = " ".join(str(claim).replace(",", " ,") for claim in claims)
    return sorted({*text.split(), *SIZES, *EXTRA_WORDS})


def learn_merges(vocabulary: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of each word, the most frequent pair first.

    Ties go to the alphabet: the library's own trainer breaks them anew in every run.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word's symbols with every such pair joined, from left to right."""
    out: list[str] = []
    for symbol in word:
        # A symbol that was joined just now is longer than the pair's first: no double use.
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def build_clip_tokenizer() -> Any:
    """Byte-level BPE whose word-final symbols end in </w>, as CLIP's do."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges = learn_merges(words())
    # All 256 bytes, in and at the end of a word, so that no text is unknown.
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def build_t5_tokenizer() -> Any:
    """One unigram piece a word, with single characters to fall back on."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + word, -3.0) for word in words() if word != ","]
    pieces += [(",", -3.0), ("▁", -4.0)]
    letters = string.ascii_lowercase + string.ascii_uppercase + string.digits + ".-'"
    pieces += [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build_tokenizers(out: Path) -> None:
    """Write both where a pipeline's folder has them."""
    build_clip_tokenizer().save_pretrained(out / "tokenizer")
    build_t5_tokenizer().save_pretrained(out / "tokenizer_2")
