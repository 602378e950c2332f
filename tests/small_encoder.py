"""A text encoder as transformers keeps it, so small that a test can train it."""

from pathlib import Path

import tokenizers
import transformers

from featurecache.sources import open_data

__all__ = ["write_encoder"]


def write_encoder(folder: Path, data: str) -> Path:
    """A masked-language BERT of one layer of 16 with random weights, and a tokenizer of the words of some data."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2}
    source = open_data([data], splits=["train"])["train"]
    for index in range(len(source)):
        for word in source[index].encoded.decode().lower().split():
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[MASK]"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=512, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder
