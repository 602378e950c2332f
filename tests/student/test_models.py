"""Students: timm and BERT backbones, their sizes and starting weights, heads, names and refusals."""

import json

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel

from featurecache.errors import UnknownNameError, UsageError
from featurecache.inputs import ImageInput, TextInput
from student.models import DEFAULT_STUDENTS, STUDENTS, Student, backbone_from_json, build_backbone
from student.models.bert import BertBackbone

SMALL = ImageInput(size=64)


def text_input(words=20, *, max_length=16):
    """A tokenizer of [PAD], [UNK] and made-up words, `words` ids in all."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{number}": number for number in range(2, words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return TextInput(tokenizer.to_str(), max_length=max_length)


def images(count, size=64):
    return {"images": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)}


def texts(input, *lines):
    return input.collate([input.prepare(line) for line in lines])


@pytest.mark.parametrize(
    ("name", "width"),
    [("test_vit", 64), ("timm:test_efficientnet", 256), ("mobilenetv3_small_100", 1024), ("resnet18.a1_in1k", 512)],
)
def test_timm_gives_what_its_classifier_would_read(name, width):
    backbone = build_backbone(name, SMALL).eval()
    features = backbone(images(2))
    assert backbone.features == width and features.shape == (2, width) and features.dtype == torch.float32
    assert backbone.name == name.removeprefix("timm:") and backbone.input is SMALL


def test_timm_sees_images_normalised_as_the_input_says():
    backbone = build_backbone(
        "test_efficientnet", ImageInput(size=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    ).eval()
    batch = images(2)
    scaled = batch["images"].float() / 255
    expected = (scaled - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(backbone(batch), backbone.network(expected), rtol=1e-4, atol=1e-4)


def test_timm_starts_in_training_mode_with_untouched_statistics():
    backbone = build_backbone("resnet18", SMALL)
    assert backbone.training and all(module.training for module in backbone.modules())
    assert all(int(value) == 0 for name, value in backbone.state_dict().items() if name.endswith("num_batches_tracked"))


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build_backbone("test_vit", SMALL).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_timm_starts_from_a_safetensors_file_that_has_a_classifier_too(name, tmp_path):
    trained = timm.create_model(name, num_classes=5, **({"img_size": 64} if name == "test_vit" else {}))
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    backbone = build_backbone(name, SMALL, init_from=str(tmp_path / "weights.safetensors")).eval()
    batch = images(2)
    expected = trained.eval().forward_head(trained.forward_features(SMALL.normalise(batch["images"])), pre_logits=True)
    torch.testing.assert_close(backbone(batch), expected)


def test_timm_refuses_weights_that_do_not_fit(tmp_path):
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="do not fit: .* tensors are missing or differ"):
        build_backbone("test_vit", SMALL, init_from=str(tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(UsageError, match="is not a whole safetensors file"):
        build_backbone("test_vit", SMALL, init_from=str(tmp_path / "broken.safetensors"))
    with pytest.raises(UsageError, match="there is no file"):
        build_backbone("test_vit", SMALL, init_from=str(tmp_path / "none.safetensors"))
    with pytest.raises(UsageError, match="test_vit cannot start from the weights of resnet18"):
        build_backbone("test_vit", SMALL, init_from="resnet18.a1_in1k")


def test_an_image_size_that_the_model_cannot_take_is_refused():
    with pytest.raises(UsageError, match="swin_tiny_patch4_window7_224 cannot take images of 3 pixels"):
        build_backbone("swin_tiny_patch4_window7_224", ImageInput(size=3))


def test_bert_gives_the_mean_over_real_tokens_whatever_the_padding():
    input = text_input()
    backbone = build_backbone("bert:2x128", input).eval()
    together = backbone(texts(input, "w2 w3", "w4 w5 w6 w7 w8 w9"))
    alone = backbone(texts(input, "w2 w3"))
    assert together.shape == (2, 128) and backbone.features == 128
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    hidden = backbone.network(input_ids=torch.tensor([[2, 3]])).last_hidden_state
    torch.testing.assert_close(alone, hidden.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_bert_has_a_fused_attention_without_dropout_and_enough_positions():
    configuration = build_backbone("bert:4x256", text_input(max_length=600)).network.config
    assert configuration._attn_implementation == "sdpa"
    assert configuration.attention_probs_dropout_prob == 0
    assert configuration.max_position_embeddings == 600
    assert (configuration.num_attention_heads, configuration.intermediate_size) == (4, 1024)
    assert build_backbone("bert:1x48", text_input()).network.config.num_attention_heads == 1


MILLIONS = {  # table 1 of arXiv 1908.08962: embedding, encoder, pooler and MLM head
    2: (4.4, 9.7, 22.8, 39.2),
    4: (4.8, 11.3, 29.1, 53.4),
    6: (5.2, 12.8, 35.4, 67.5),
    8: (5.6, 14.4, 41.7, 81.7),
    10: (6.0, 16.0, 48.0, 95.9),
    12: (6.4, 17.6, 54.3, 110.1),
}


@pytest.fixture(scope="module")
def english():
    return text_input(30_522)


@pytest.mark.parametrize("layers", MILLIONS.keys())
def test_bert_has_the_parameters_of_the_24_models(layers, english):
    for width, millions in zip((128, 256, 512, 768), MILLIONS[layers], strict=True):
        with torch.device("meta"):
            backbone = BertBackbone(layers, width, english)
        count = sum(parameter.numel() for parameter in backbone.parameters())
        embedding = (30_522 + 512 + 2) * width + 2 * width
        attention = 4 * (width * width + width) + 2 * width
        feed_forward = 2 * 4 * width * width + 4 * width + width + 2 * width
        assert count == embedding + layers * (attention + feed_forward)
        pooler = width * width + width
        language_model_head = width * width + width + 2 * width + 30_522
        assert (count + pooler + language_model_head) / 1e6 == pytest.approx(millions, abs=0.1)


def write_bert(folder, **changes):
    """A trained BERT as transformers saves it."""
    sizes = {"vocab_size": 20, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    donor = BertModel(BertConfig(**{**sizes, "intermediate_size": 512, **changes}))
    donor.save_pretrained(folder)
    return donor.eval()


def test_bert_starts_from_a_transformers_folder_without_a_word(tmp_path, capfd):
    donor = write_bert(tmp_path)
    input = text_input()
    capfd.readouterr()
    backbone = build_backbone("bert:2x128", input, init_from=str(tmp_path)).eval()
    assert capfd.readouterr() == ("", "")
    batch = texts(input, "w2 w3 w4")
    torch.testing.assert_close(backbone(batch), donor(input_ids=batch["ids"]).last_hidden_state.mean(dim=1))


def test_bert_refuses_another_shape_and_a_folder_without_a_model(tmp_path):
    write_bert(tmp_path / "wide", vocab_size=33, num_attention_heads=4)
    with pytest.raises(UsageError, match=r"num_attention_heads 4 \(here 2\), vocab_size 33 \(here 20\)"):
        build_backbone("bert:2x128", text_input(), init_from=str(tmp_path / "wide"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="cannot load a BERT from"):
        build_backbone("bert:2x128", text_input(), init_from=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "input", "source", "offline_way"),
    [
        ("resnet18", SMALL, "resnet18.a1_in1k", "give a .safetensors file"),
        ("bert:2x128", text_input(), "google/bert_uncased_L-2_H-128_A-2", "give a local transformers folder"),
    ],
)
def test_weights_that_cannot_be_fetched_name_the_offline_way(name, input, source, offline_way, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="cannot load") as caught:
        build_backbone(name, input, init_from=source)
    assert offline_way in caught.value.hint


@pytest.mark.parametrize(("name", "input"), [("test_vit", SMALL), ("bert:2x128", text_input(max_length=600))])
def test_a_backbone_is_built_again_from_its_json_and_weights(name, input):
    backbone = build_backbone(name, input).eval()
    again = backbone_from_json(json.loads(json.dumps(backbone.to_json())), input).eval()
    again.load_state_dict(backbone.state_dict())
    batch = images(2) if input is SMALL else texts(input, "w2 w3")
    assert torch.equal(again(batch), backbone(batch))
    assert (again.name, again.features) == (backbone.name, backbone.features)


def test_a_backbone_is_not_built_again_with_another_tokenizer():
    value = build_backbone("bert:2x128", text_input()).to_json()
    with pytest.raises(UsageError, match="made for a vocabulary of 20, this tokenizer has 21"):
        backbone_from_json(value, text_input(21))
    with pytest.raises(UsageError, match="takes text inputs"):
        backbone_from_json(value, SMALL)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilnetv3_small_100", "did you mean 'mobilenetv3_small_100'?"),
        ("timm:resnet81", "did you mean 'resnet"),
        ("resnet18.a1_in1", "did you mean 'resnet18.a1_in1k'?"),
        ("bret:4x256", "did you mean 'bert:4x256'?"),
        ("zzzzzzzzzz", "known: bert:10x128, bert:10x256"),
    ],
)
def test_an_unknown_student_is_answered_with_the_nearest(name, hint):
    with pytest.raises(UnknownNameError) as caught:
        build_backbone(name, SMALL)
    assert caught.value.message == f"no student is called {name!r}"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert:tiny", "cannot read the student 'bert:tiny'"),
        ("bert:2x200", "no BERT has 2 layers of width 200"),
        ("bert:0x128", "no BERT has 0 layers of width 128"),
    ],
)
def test_an_impossible_bert_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        build_backbone(name, text_input())


def test_a_student_of_the_other_modality_is_refused_with_those_that_fit():
    with pytest.raises(UsageError) as caught:
        build_backbone("bert:4x256", SMALL)
    assert caught.value.message == "the student bert:4x256 takes text inputs, but the data is image"
    assert "mobilenetv3_small_100" in caught.value.hint and "any timm model" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        build_backbone("resnet18", text_input())
    assert caught.value.message == "the student resnet18 takes image inputs, but the data is text"
    assert "bert:4x256" in caught.value.hint and "resnet18" not in caught.value.hint


def test_the_table_holds_the_defaults_and_only_real_models():
    assert all(STUDENTS[name] == modality for modality, name in DEFAULT_STUDENTS.items())
    assert all(timm.is_model(name) for name, modality in STUDENTS.items() if modality == "image")
    assert all(name.startswith("bert:") for name, modality in STUDENTS.items() if modality == "text")


def test_a_student_gives_its_features_and_what_each_head_makes_of_them():
    student = Student(build_backbone("test_efficientnet", SMALL), {"labels": 5, "embedding": 12}).eval()
    outputs = student(images(2))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "features": (2, 256),
        "labels": (2, 5),
        "embedding": (2, 12),
    }
    head = student.heads["labels"]
    torch.testing.assert_close(outputs["labels"], outputs["features"] @ head.weight.T + head.bias)
    assert student.widths == {"labels": 5, "embedding": 12} and student.shared == {}


def test_a_shared_head_is_one_classifier_for_two_outputs():
    student = Student(build_backbone("test_efficientnet", SMALL), {"logits": 5}, shared={"labels": "logits"}).eval()
    outputs = student(images(2))
    assert outputs["labels"] is outputs["logits"]
    assert list(student.heads) == ["logits"]


def test_a_student_gives_float32_under_autocast_from_float32_heads():
    student = Student(build_backbone("test_efficientnet", SMALL), {"labels": 5}).eval()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = student(images(2))
    assert all(value.dtype == torch.float32 for value in outputs.values())
    head = student.heads["labels"]
    assert torch.equal(outputs["labels"], torch.nn.functional.linear(outputs["features"], head.weight, head.bias))
