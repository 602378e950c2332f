"""Tokenizers of texts, read or trained: uncased word pieces as BERT has them (Devlin et al., arXiv 1810.04805)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from featurecache.errors import UsageError

__all__ = ["read_tokenizer", "train_tokenizer"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = "##"
"""Stands before a piece that does not begin a word."""
_MOST_CHARACTERS = 1000
"""Of which a word may consist; with a rarer one it is unknown."""


def read_tokenizer(place: Path | str) -> str:
    """The text of a `tokenizer.json`: the file, or the one in a folder. Raises UsageError if there is none."""
    file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    try:
        text = file.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except OSError as error:
        hint = "give a tokenizer.json, or a folder that has one"
        raise UsageError(f"cannot read the tokenizer {file}: {error.strerror or error}", hint=hint) from None
    except Exception as error:  # noqa: BLE001 - the tokenizers package raises nothing more exact
        raise UsageError(f"{file} is not a tokenizer of the tokenizers package: {error}") from None
    return text


def train_tokenizer(texts: Iterable[str], *, size: int) -> str:
    """The text of a `tokenizer.json` with at most `size` word pieces, special tokens included.

    The same texts in any order give the same bytes. Raises UsageError for a size that does not hold the characters.
    """
    words = _words(texts)
    characters = _characters(words)
    pieces = [*_SPECIAL, *characters, *(f"{_INSIDE}{character}" for character in characters)]
    if size < len(pieces):
        message = f"a vocabulary of {size:,} does not hold the {len(pieces):,} tokens of single characters"
        raise UsageError(message, hint=f"it is at least {len(pieces):,}")
    trained = _empty()
    # pieces that are named beforehand have the same ids in every run, and ids decide between pairs that are as frequent
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=pieces,
        initial_alphabet=characters,  # else characters that are as rare as the last of them take turns
        limit_alphabet=len(characters),
        show_progress=False,
    )
    trained.train_from_iterator(words.elements(), trainer)
    vocabulary = trained.get_vocab(with_added_tokens=True)
    return _finished(vocabulary).to_str()


def _empty() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(texts: Iterable[str]) -> Counter[str]:
    tokenizer = _empty()
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    assert normalizer is not None and splitter is not None
    found: Counter[str] = Counter()
    for text in texts:
        found.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return found


def _characters(words: Counter[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted(frequent[:_MOST_CHARACTERS])


def _finished(vocabulary: dict[str, int]) -> Tokenizer:
    """The same pieces, of which only BERT's own special tokens are special."""
    tokenizer = _empty()
    tokenizer.model = WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(list(_SPECIAL))
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.decoder = decoders.WordPiece(prefix=_INSIDE)
    return tokenizer
