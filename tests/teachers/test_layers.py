"""What layers give for each token, against what timm and transformers themselves say of them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from featurecache.layers import Taps, timm_taps
from featurecache.teachers.timm_model import TimmTeacher
from featurecache.teachers.transformers_text import TransformersText
from featurecache.teachers.transformers_vision import TransformersVision
from tests.contracts.teacher_contract import TEXTS
from tests.teachers.test_transformers_text import WORDS, write_bert, write_tokenizer
from tests.teachers.test_transformers_vision import RESNET, VIT, write_model

DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": len(WORDS)}
MODERN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODERN |= {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2}
MODERN |= {"sep_token_id": 3}


def write_distil(folder):
    torch.manual_seed(0)
    network = transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL))
    network.save_pretrained(folder)
    write_tokenizer(Path(folder))
    return network.eval()


def write_classifier(folder):
    return write_bert(folder, model="BertForSequenceClassification", id2label={0: "a", 1: "b"})


def texts_of(teacher):
    return teacher.input.collate([teacher.input.prepare(text) for text in TEXTS])


@pytest.mark.parametrize("write", [write_bert, write_distil, write_classifier])
def test_hidden_states_of_texts_are_those_of_the_library(tmp_path, write):
    network = write(tmp_path)
    teacher = TransformersText(tmp_path, max_length=20, pool="mean")
    batch = texts_of(teacher)
    names = ["hidden.2", "hidden.0", "hidden.1"]
    outputs = teacher(batch, names)
    plain = teacher(batch)
    assert list(outputs) == [*plain, *names]
    assert all(torch.equal(outputs[name], plain[name]) for name in plain)
    with torch.inference_mode():
        told = {"input_ids": batch["ids"], "attention_mask": batch["mask"].long()}
        expected = network(**told, output_hidden_states=True).hidden_states
    for number in range(3):
        torch.testing.assert_close(outputs[f"hidden.{number}"], expected[number])
    specs = {spec.name: spec for spec in teacher.further}
    assert set(specs) == {"hidden.0", "hidden.1", "hidden.2", "qkv.1", "qkv.2"}
    assert (specs["hidden.1"].shape, specs["hidden.1"].longest, specs["hidden.1"].heads) == ((16,), 20, 0)
    assert (specs["qkv.2"].shape, specs["qkv.2"].longest) == ((48,), 20)


def test_queries_keys_and_values_are_those_of_the_weights(tmp_path):
    network = write_bert(tmp_path)
    teacher = TransformersText(tmp_path)
    batch = texts_of(teacher)
    outputs = teacher(batch, ["qkv.2", "hidden.1"])
    weights = network.state_dict()
    states = outputs["hidden.1"].double().numpy()
    parts = []
    for name in ("query", "key", "value"):
        weight, bias = (
            weights[f"encoder.layer.1.attention.self.{name}.{kind}"].double().numpy() for kind in ("weight", "bias")
        )
        parts.append(states @ weight.T + bias)
    np.testing.assert_allclose(outputs["qkv.2"].numpy(), np.concatenate(parts, axis=2), atol=1e-6)


def attention_of(qkv, heads, mask):
    """Softmax of the scores that are computed again from queries and keys, float64 (batch, heads, tokens, tokens)."""
    query, key, _ = np.split(qkv.double().numpy(), 3, axis=2)
    query, key = (np.stack(np.split(each, heads, axis=2), axis=1) for each in (query, key))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[3])
    scores = np.where(mask[:, None, None], scores, -np.inf)
    exponents = np.exp(scores - scores.max(3, keepdims=True))
    return exponents / exponents.sum(3, keepdims=True)


def test_attention_can_be_computed_again_from_what_is_kept(tmp_path):
    write_bert(tmp_path)
    network = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    teacher = TransformersText(tmp_path)
    batch = texts_of(teacher)
    with torch.inference_mode():
        told = {"input_ids": batch["ids"], "attention_mask": batch["mask"].long()}
        expected = network(**told, output_attentions=True).attentions
    heads = {spec.name: spec.heads for spec in teacher.further}
    for number, outputs in enumerate((teacher(batch, ["qkv.1"]), teacher(batch, ["qkv.2"]))):
        (name,) = outputs.keys() - {"embedding"}
        found = attention_of(outputs[name], heads[name], batch["mask"].numpy())
        np.testing.assert_allclose(found, expected[number].numpy(), atol=1e-5)


def test_positions_that_are_rotated_into_queries_leave_hidden_states_alone(tmp_path):
    torch.manual_seed(0)
    transformers.ModernBertModel(transformers.ModernBertConfig(**MODERN)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    names = {spec.name for spec in TransformersText(tmp_path, max_length=16).further}
    assert names == {"hidden.0", "hidden.1", "hidden.2"}


def images_of(teacher):
    draw = torch.Generator().manual_seed(0)
    size = teacher.input.size
    return {"images": torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=draw)}


def test_hidden_states_of_images_are_those_of_transformers(tmp_path):
    network = write_model(tmp_path, "ViTModel", VIT)
    teacher = TransformersVision(tmp_path)
    batch = images_of(teacher)
    outputs = teacher(batch, ["hidden.0", "hidden.2", "qkv.1"])
    with torch.inference_mode():
        pixels = teacher.input.normalise(batch["images"])
        expected = network(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(outputs["hidden.0"], expected[0])
    torch.testing.assert_close(outputs["hidden.2"], expected[2])
    specs = {spec.name: spec for spec in teacher.further}
    assert specs["hidden.2"].shape == expected[2].shape[1:] and specs["hidden.2"].tokens == expected[2].shape[1]
    assert outputs["qkv.1"].shape[1:] == specs["qkv.1"].shape and specs["qkv.1"].heads == VIT["num_attention_heads"]


def test_maps_of_convolutions_are_tokens_row_by_row(tmp_path):
    network = write_model(tmp_path, "ResNetModel", RESNET)
    teacher = TransformersVision(tmp_path)
    batch = images_of(teacher)
    with torch.inference_mode():
        expected = network(teacher.input.normalise(batch["images"]), output_hidden_states=True).hidden_states
    last = teacher.further[-1]
    found = teacher(batch, [last.name])[last.name]
    assert last.name == f"hidden.{len(expected) - 1}" and found.shape[1:] == last.shape
    height, width = expected[-1].shape[2:]
    assert torch.equal(found[1, width * (height - 1)], expected[-1][1, :, height - 1, 0])


def timm_teacher(folder, model):
    torch.manual_seed(0)
    save_file(timm.create_model(model).state_dict(), folder / "w.safetensors")
    teacher = TimmTeacher(model, weights=folder / "w.safetensors")
    network = timm.create_model(model).eval()
    network.load_state_dict(load_file(folder / "w.safetensors"))
    return teacher, network


@pytest.mark.parametrize("model", ["test_vit", "test_vit3", "deit_tiny_distilled_patch16_224"])
def test_layers_of_vits_are_those_of_timm(tmp_path, model):
    teacher, network = timm_teacher(tmp_path, model)
    batch = images_of(teacher)
    depth, prefix = len(network.blocks), network.num_prefix_tokens
    names = [spec.name for spec in teacher.further]
    assert {f"hidden.{number}" for number in range(depth + 1)} <= set(names)
    outputs, plain = teacher(batch, names), teacher(batch)
    assert all(torch.equal(outputs[name], plain[name]) for name in plain)
    with torch.inference_mode():
        pixels = teacher.input.normalise(batch["images"])
        each = network.forward_intermediates(
            pixels, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        first = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(pixels))))
    torch.testing.assert_close(outputs["hidden.0"], first)
    for number, (patches, prefixes) in enumerate(each, 1):
        torch.testing.assert_close(outputs[f"hidden.{number}"][:, prefix:], patches)
        torch.testing.assert_close(outputs[f"hidden.{number}"][:, :prefix], prefixes)
    for spec in teacher.further:
        assert outputs[spec.name].shape[1:] == spec.shape


def test_queries_keys_and_values_of_a_timm_vit_give_its_attention(tmp_path):
    teacher, network = timm_teacher(tmp_path, "test_vit")
    batch = images_of(teacher)
    (spec,) = (spec for spec in teacher.further if spec.name == "qkv.3")
    outputs = teacher(batch, ["qkv.3", "hidden.2"])
    attention = network.blocks[2].attn
    with torch.inference_mode():
        expected = attention(network.blocks[2].norm1(outputs["hidden.2"]))
    found = attention_of(outputs["qkv.3"], spec.heads, np.ones(outputs["qkv.3"].shape[:2], bool))
    values = np.stack(np.split(np.split(outputs["qkv.3"].numpy(), 3, axis=2)[2], spec.heads, axis=2), axis=1)
    mixed = (found @ values).transpose(0, 2, 1, 3).reshape(*expected.shape)
    weight, bias = attention.proj.weight.detach().numpy(), attention.proj.bias.detach().numpy()
    np.testing.assert_allclose(mixed @ weight.T + bias, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_maps_of_stages_are_those_of_timm(tmp_path, model):
    teacher, network = timm_teacher(tmp_path, model)
    batch = images_of(teacher)
    outputs = teacher(batch, [spec.name for spec in teacher.further])
    with torch.inference_mode():
        maps = network.forward_intermediates(teacher.input.normalise(batch["images"]), intermediates_only=True)
    assert [spec.name for spec in teacher.further] == [f"hidden.{number}" for number in range(len(maps))]
    for spec, expected in zip(teacher.further, maps, strict=True):
        torch.testing.assert_close(outputs[spec.name], expected.flatten(2).transpose(1, 2))
        assert spec.shape == (expected.shape[2] * expected.shape[3], expected.shape[1])


def test_nothing_stays_hooked(tmp_path):
    teacher, _ = timm_teacher(tmp_path, "test_vit")
    network = teacher._network
    teacher(images_of(teacher), ["hidden.1", "qkv.2", "hidden.0"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    taps = Taps(timm_taps(network))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 160, 160))
    assert taps.take() and not taps.take()
    taps.close()
