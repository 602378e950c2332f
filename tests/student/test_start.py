"""What a student starts from: which tokenizer and weights it gets from every kind of place, and what is refused."""

import json
import pathlib
import pickle
import re

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForPreTraining, BertModel

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.inputs import ImageInput, TextInput
from student.export import save_student
from student.masked_lm import MaskedLanguageModel
from student.models import Student, build_backbone
from student.models.build import PUBLISHED_BERTS
from student.start import start_from, start_place, start_tokenizer
from student.tokenizer import train_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "metal", "##s", "the", "of", "!", "zinc"]
CLASSES = ("fruit", "metal", "river")
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}


@pytest.fixture
def text_input():
    return TextInput(train_tokenizer(["the river of metals!", "the metal of rivers!"], size=60), max_length=16)


def make_student(network_input, heads, *, name="bert:1x16", seed=1, **options):
    torch.manual_seed(seed)
    return Student(build_backbone(name, network_input), heads, **options)


def weights_of(student):
    return {name: value.clone() for name, value in student.state_dict().items()}


def changed(student, before):
    return {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}


def backbone_of(student):
    return {name for name in student.state_dict() if name.startswith("backbone.")}


@pytest.fixture
def trained(tmp_path, text_input):
    """A folder with a student of five logits and an embedding, and its weights."""
    student = make_student(text_input, {"logits": 5, "embedding": 3}, shared={"labels": "logits"}, seed=7)
    save_student(student, tmp_path / "student", {"class_names": list(CLASSES), "classes": [4, 0, 2]})
    return tmp_path / "student", weights_of(student)


def test_a_finished_run_is_its_student_and_an_unfinished_one_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match="is not finished") as caught:
        start_place(str(tmp_path), "bert:1x16")
    assert caught.value.hint == "finish it with --resume"
    (tmp_path / "summary.json").write_text("{}")
    assert start_place(str(tmp_path), "bert:1x16") == str(tmp_path / "student")


@pytest.mark.parametrize("given", ["resnet18.a1_in1k", "google/bert_uncased_L-2_H-128_A-2", "./weights.safetensors"])
def test_other_places_stay_what_they_are(given):
    assert start_place(given, None) == given


def test_published_is_one_of_24_names():
    found = {start_place("published", f"bert:{layers}x{width}") for layers, width in PUBLISHED_BERTS}
    heads = {128: 2, 256: 4, 512: 8, 768: 12}  # table 1 of arXiv 1908.08962
    assert found == {f"google/bert_uncased_L-{n}_H-{h}_A-{heads[h]}" for n in range(2, 13, 2) for h in heads}
    assert len(found) == 24


@pytest.mark.parametrize(
    ("student", "message", "hint"),
    [
        ("bert:3x256", "bert:3x256 is none of the 24 sizes", "2, 4, 6, 8, 10 or 12 layers of 128, 256, 512 or 768"),
        ("bert:4x64", "bert:4x64 is none of the 24 sizes", "2, 4, 6, 8, 10 or 12 layers"),
        ("resnet18", "no model was published for the student resnet18", "is for --student bert:LAYERSxWIDTH"),
        (None, "no model was published for the student that is not named", "bert:LAYERSxWIDTH"),
    ],
)
def test_published_of_another_size_is_refused(student, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        start_place("published", student)
    assert hint in caught.value.hint


def test_the_tokenizer_of_a_trained_student_and_of_a_file(trained, text_input):
    folder, _ = trained
    assert start_tokenizer(str(folder)) == start_tokenizer(str(folder / "tokenizer.json")) == text_input.tokenizer_json


def test_a_folder_and_a_file_without_a_tokenizer_have_none(tmp_path):
    assert start_tokenizer(str(tmp_path)) is None
    assert start_tokenizer(str(tmp_path / "missing.safetensors")) is None
    assert start_tokenizer("folder/weights.safetensors") is None


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="is not a tokenizer"):
        start_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["google/bert_uncased_L-2_H-128_A-2", "bert-base-uncased"])
def test_a_name_without_a_network_names_the_offline_way(name, text_input, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=f"cannot load the tokenizer of '{name}'") as caught:
        start_tokenizer(name)
    assert "give a local folder" in caught.value.hint
    with pytest.raises(UsageError, match=f"cannot load a BERT from '{name}'") as caught:
        start_from(make_student(text_input, {}), name)
    assert "give a local transformers folder" in caught.value.hint


def test_a_trained_student_gives_its_backbone_and_heads(trained, text_input):
    folder, weights = trained
    student = make_student(text_input, {"logits": 5, "embedding": 3}, shared={"labels": "logits"})
    start_from(student, str(folder), CLASSES)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


def test_a_classifier_of_labels_starts_from_the_logits_of_its_classes(trained, text_input):
    folder, weights = trained
    student = make_student(text_input, {"labels": 3, "embedding": 4})
    before = weights_of(student)
    start_from(student, str(folder), CLASSES)
    for what in ("weight", "bias"):
        logits = weights[f"heads.logits.{what}"]
        expected = torch.stack([logits[4], logits[0], logits[2]])
        assert torch.equal(student.state_dict()[f"heads.labels.{what}"], expected)
    # a head of another width stays as it was
    assert changed(student, before).isdisjoint({"heads.embedding.weight", "heads.embedding.bias"})


@pytest.mark.parametrize("names", [("metal", "fruit", "river"), ("fruit", "metal"), ()])
def test_heads_of_other_classes_are_not_taken(trained, text_input, names):
    folder, weights = trained
    student = make_student(text_input, {"labels": 3, "logits": 5})
    before = weights_of(student)
    start_from(student, str(folder), names)
    found = student.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in backbone_of(student))
    assert changed(student, before) <= backbone_of(student)


def test_a_classifier_of_labels_is_taken_before_one_of_logits(text_input, tmp_path):
    donor = make_student(text_input, {"labels": 3, "logits": 5}, seed=7)
    save_student(donor, tmp_path, {"class_names": list(CLASSES), "classes": [4, 0, 2]})
    student = make_student(text_input, {"labels": 3})
    start_from(student, str(tmp_path), CLASSES)
    assert torch.equal(student.heads["labels"].weight, donor.heads["labels"].weight)


def test_logits_that_are_no_classes_of_the_data_give_no_classifier(text_input, tmp_path):
    donor = make_student(text_input, {"logits": 5}, seed=7)
    save_student(donor, tmp_path, {"class_names": list(CLASSES), "classes": None})
    student = make_student(text_input, {"labels": 3})
    before = weights_of(student)
    start_from(student, str(tmp_path), CLASSES)
    assert changed(student, before) <= backbone_of(student)


def test_a_trained_student_of_images(tmp_path):
    network_input = ImageInput(size=32)
    donor = make_student(network_input, {"labels": 3}, name="test_efficientnet", seed=7)
    save_student(donor, tmp_path, {"class_names": list(CLASSES), "classes": None})
    student = make_student(network_input, {"labels": 3}, name="test_efficientnet")
    start_from(student, str(tmp_path), CLASSES)
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in student.state_dict().items())
    with pytest.raises(UsageError, match="test_vit cannot start from .* 'test_efficientnet'"):
        start_from(make_student(network_input, {}, name="test_vit"), str(tmp_path))


def test_a_student_of_another_shape_is_refused(trained, text_input):
    folder, _ = trained
    student = make_student(text_input, {"logits": 5}, name="bert:2x16")
    before = weights_of(student)
    with pytest.raises(UsageError, match="bert:2x16 cannot start from .*'layers': 1") as caught:
        start_from(student, str(folder), CLASSES)
    assert "choose the same --student" in caught.value.hint
    assert not changed(student, before)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_student_is_refused(trained, text_input, content):
    folder, _ = trained
    if content is None:
        (folder / "student.safetensors").write_bytes(b"nothing")
    else:
        (folder / "student.json").write_text(content)
    with pytest.raises(CorruptCacheError, match="does not hold a whole student"):
        start_from(make_student(text_input, {}), str(folder))


def test_a_student_with_weights_of_another_is_refused(trained, text_input):
    folder, _ = trained
    facts = json.loads((folder / "student.json").read_text())
    save_student(make_student(text_input, {}, name="bert:2x16"), folder, {})
    (folder / "student.json").write_text(json.dumps({**facts, "backbone": {**facts["backbone"], "layers": 3}}))
    with pytest.raises(UsageError, match=re.escape("lacks weights of the student, such as backbone.network.encoder")):
        start_from(make_student(text_input, {}, name="bert:3x16"), str(folder))


def test_a_pretrained_student(text_input, tmp_path):
    torch.manual_seed(7)
    donor = MaskedLanguageModel(build_backbone("bert:1x16", text_input))
    donor.save(tmp_path)
    student = make_student(text_input, {"labels": 3})
    before = weights_of(student)
    start_from(student, str(tmp_path), CLASSES)
    theirs = {f"backbone.network.{name}": value for name, value in donor.network.bert.state_dict().items()}
    assert backbone_of(student) == theirs.keys()
    assert all(torch.equal(student.state_dict()[name], value) for name, value in theirs.items())
    assert changed(student, before) <= backbone_of(student)
    assert start_tokenizer(str(tmp_path)) == text_input.tokenizer_json


@pytest.fixture
def published(tmp_path):
    """A folder as the 24 models are published: BERT with a pooler and both heads, and vocab.txt."""
    torch.manual_seed(3)
    BertForPreTraining(BertConfig(vocab_size=len(WORDS), **SIZES)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return tmp_path


def test_a_folder_in_the_published_form(published, capfd):
    stored = load_file(published / "model.safetensors")
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} < stored.keys()
    capfd.readouterr()
    network_input = TextInput(start_tokenizer(str(published)))
    student = make_student(network_input, {"labels": 3}, name="bert:2x128")
    start_from(student, str(published), CLASSES)
    assert capfd.readouterr() == ("", "")
    for name, value in student.backbone.network.state_dict().items():
        assert torch.equal(value, stored[f"bert.{name}"])
    ids = [2, WORDS.index("the"), WORDS.index("river"), WORDS.index("##s"), 4, WORDS.index("!"), 1, 3]
    assert network_input.prepare("The RIVERS [MASK]! gold") == ids
    assert network_input.vocabulary_size == len(WORDS) and network_input.padding_id == 0
    special = Tokenizer.from_str(network_input.tokenizer_json).get_added_tokens_decoder()
    assert {token.content for token in special.values() if token.special} == set(WORDS[:5])


def test_another_size_than_the_published_one_is_refused(published):
    network_input = TextInput(start_tokenizer(str(published)))
    with pytest.raises(UsageError, match=re.escape("num_hidden_layers 2 (here 4)")):
        start_from(make_student(network_input, {}, name="bert:4x128"), str(published))


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def test_pickled_weights_are_never_read(tmp_path, text_input):
    folder = tmp_path / "pickled"
    config = BertConfig(vocab_size=text_input.vocabulary_size, **SIZES)
    config.save_pretrained(folder)
    torch.save(BertModel(config).state_dict(), folder / "pytorch_model.bin")
    student = make_student(text_input, {}, name="bert:2x128")
    with pytest.raises(UsageError, match="cannot load a BERT from") as caught:
        start_from(student, str(folder))
    assert "its weights are pickled" in caught.value.hint and "model.safetensors" in caught.value.hint
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UsageError, match="cannot load a BERT from"):
        start_from(student, str(folder))
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "sprung").exists()  # it would have been
