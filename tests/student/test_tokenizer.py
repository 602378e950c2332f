"""Word pieces: the same bytes for the same texts, and the merges that a plain implementation finds."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from featurecache.errors import UsageError
from student.tokenizer import read_tokenizer, train_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROGRAM = """
import json, sys
from student.tokenizer import train_tokenizer
sys.stdout.write(train_tokenizer(json.load(sys.stdin), size=120))
"""


def sentences(count=60):
    """Words of two to four syllables, many of them as frequent as others."""
    rng = np.random.default_rng(0)
    syllables = ["ba", "de", "fi", "gou", "hu", "kä"]
    words = ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(40)]
    return [" ".join(rng.choice(words, 6)).capitalize() + "." for _ in range(count)]


def vocabulary(text):
    return json.loads(text)["model"]["vocab"]


def merged(words, pieces, size, least=2):
    """The pieces that merging the most frequent pair again and again adds; of equals the pair that is known longest."""
    spelled = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    ids = {piece: number for number, piece in enumerate(pieces)}
    while len(ids) < size:
        counts = Counter()
        for word, parts in spelled.items():
            for pair in itertools.pairwise(parts):
                counts[pair] += words[word]
        if not counts:
            break
        left, right = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        if counts[left, right] < least:
            break
        joined = left + right.removeprefix("##")
        ids.setdefault(joined, len(ids))
        for parts in spelled.values():
            at = 0
            while at < len(parts) - 1:
                if parts[at : at + 2] == [left, right]:
                    parts[at : at + 2] = [joined]
                at += 1
    return ids


@pytest.mark.parametrize("size", [40, 60, 1000])
def test_it_finds_the_merges_of_a_plain_implementation(size):
    texts = sentences()
    words = Counter(word for text in texts for word in text.lower().replace("ä", "a").replace(".", " .").split())
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    expected = merged(words, pieces, size)
    assert vocabulary(train_tokenizer(texts, size=size)) == expected
    assert len(expected) == size or (size == 1000 and 60 < len(expected) < 1000)


def test_the_order_of_texts_changes_nothing():
    texts = sentences()
    shuffled = [texts[at] for at in np.random.default_rng(1).permutation(len(texts))]
    assert train_tokenizer(iter(shuffled), size=120) == train_tokenizer(texts, size=120)


@pytest.mark.parametrize(("hash_seed", "threads"), [("1", "1"), ("2", "4")])
def test_another_process_gives_the_same_bytes(hash_seed, threads):
    texts = sentences()
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
    given = {"input": json.dumps(texts), "capture_output": True, "text": True, "encoding": "utf-8"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, **given).stdout
    assert found == train_tokenizer(texts, size=120)


def test_of_too_many_characters_the_same_are_left_out_every_time():
    characters = [chr(0x4E00 + number) for number in range(1200)]
    texts = ["".join(characters[at : at + 30]) for at in range(0, 1200, 30)]
    texts += ["".join(characters[700:])]  # these stand twice
    first, second = train_tokenizer(texts, size=3000), train_tokenizer(texts[::-1], size=3000)
    kept = {piece for piece in vocabulary(first) if piece in characters}
    assert kept == {*characters[700:], *characters[:500]}  # of those that stand once, the first 500
    assert first == second


def test_special_tokens_come_first_and_only_they_are_special():
    tokenizer = Tokenizer.from_str(train_tokenizer(sentences(), size=80))
    assert [tokenizer.id_to_token(number) for number in range(5)] == SPECIAL
    added = tokenizer.get_added_tokens_decoder()
    assert {number: token.content for number, token in added.items() if token.special} == dict(enumerate(SPECIAL))
    assert len(added) == 5 and tokenizer.get_vocab_size(with_added_tokens=True) == 80


def test_texts_become_pieces_between_two_special_tokens():
    tokenizer = Tokenizer.from_str(train_tokenizer(["Bade bade fifi!", "bade hu hu"], size=40))
    assert tokenizer.encode("BÀDE hu").tokens == ["[CLS]", "bade", "hu", "[SEP]"]
    assert tokenizer.encode("bade [MASK]!").tokens == ["[CLS]", "bade", "[MASK]", "!", "[SEP]"]
    assert tokenizer.encode("bade 字 zap").tokens == ["[CLS]", "bade", "[UNK]", "[UNK]", "[SEP]"]
    assert tokenizer.encode("").tokens == ["[CLS]", "[SEP]"]
    pair = tokenizer.encode("bade", "hu")
    assert pair.tokens == ["[CLS]", "bade", "[SEP]", "hu", "[SEP]"] and pair.type_ids == [0, 0, 0, 1, 1]
    assert tokenizer.decode(tokenizer.encode("huhu bade").ids) == "huhu bade"


def test_plain_transformers_uses_it(tmp_path):
    text = train_tokenizer(sentences(), size=80)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    sentence = sentences()[0]
    assert theirs(sentence)["input_ids"] == Tokenizer.from_str(text).encode(sentence).ids


def test_a_size_that_does_not_hold_the_characters_is_refused():
    # five special tokens, and "a", "b", "!" with and without what stands before pieces inside of words
    assert len(vocabulary(train_tokenizer(["ab ba!"], size=11))) == 11
    with pytest.raises(UsageError, match="a vocabulary of 10 does not hold the 11 tokens") as caught:
        train_tokenizer(["ab ba!"], size=10)
    assert caught.value.hint == "it is at least 11"


def test_a_tokenizer_is_read_from_a_file_or_a_folder(tmp_path):
    text = train_tokenizer(sentences(), size=80)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert read_tokenizer(tmp_path) == read_tokenizer(str(tmp_path / "tokenizer.json")) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the tokenizer .*tokenizer.json: No such file"),
        (b"{}", "is not a tokenizer of the tokenizers package"),
        (b"not JSON", "is not a tokenizer of the tokenizers package"),
        (b"\xff\xfe", "is not a tokenizer of the tokenizers package"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_tokenizer(tmp_path)
