"""What students give of their layers: the right states, only when asked for, in copies and compiled as well."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput
from student.models import Student, build_backbone
from student.models.base import Layered
from tests.student.small_student import BagOfBytes
from tests.student.test_models import images, text_input, texts


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return build_backbone("bert:3x128", text_input()).eval()


def test_bert_gives_the_states_and_projections_of_its_network(bert):
    batch = texts(bert.input, "w2 w3 w4 w5", "w7")
    student = Student(bert, {"logits": 3}, layers=["qkv.2", "hidden.0", "hidden.3"]).eval()
    outputs = student(batch)
    assert list(outputs) == ["features", "logits", "qkv.2", "hidden.0", "hidden.3"]
    network: BertModel = bert.network
    states = network(input_ids=batch["ids"], attention_mask=batch["mask"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(outputs["hidden.0"], states[0])
    torch.testing.assert_close(outputs["hidden.3"], states[3])
    own = network.encoder.layer[1].attention.self
    expected = torch.cat([layer(states[1]) for layer in (own.query, own.key, own.value)], dim=2)
    torch.testing.assert_close(outputs["qkv.2"], expected)
    specs = bert.layers()
    assert list(specs) == ["hidden.0", "hidden.1", "hidden.2", "hidden.3", "qkv.1", "qkv.2", "qkv.3"]
    assert (specs["qkv.2"].shape, specs["qkv.2"].longest, specs["qkv.2"].heads) == ((384,), 16, 2)


@pytest.mark.parametrize(
    ("model", "first", "last"), [("test_vit", "hidden.0", "hidden.6"), ("test_resnet", "hidden.0", "hidden.4")]
)
def test_timm_gives_what_its_intermediates_are(model, first, last):
    backbone = build_backbone(model, ImageInput(size=64)).train()
    specs = backbone.layers()
    assert backbone.training and all(module.training for module in backbone.modules())
    student = Student(backbone, {}, layers=[first, last]).eval()
    batch = images(2)
    outputs = student(batch)
    assert all(outputs[name].shape == (2, *specs[name].shape) for name in (first, last))
    each = backbone.network.forward_intermediates(backbone.input.normalise(batch["images"]), intermediates_only=True)
    expected = each[-1].flatten(2).transpose(1, 2)
    prefix = outputs[last].shape[1] - expected.shape[1]
    assert prefix == getattr(backbone.network, "num_prefix_tokens", 0)
    normed = backbone.network.norm(outputs[last]) if model == "test_vit" else outputs[last]
    states = (
        normed if model == "test_vit" and not torch.allclose(outputs[last][:, prefix:], expected) else outputs[last]
    )
    torch.testing.assert_close(states[:, prefix:], expected)


def test_gradients_reach_the_layers_below(bert):
    student = Student(bert, {}, layers=["hidden.1"])
    student(texts(bert.input, "w2 w3"))["hidden.1"].square().sum().backward()
    touched = {name for name, weight in bert.network.named_parameters() if weight.grad is not None}
    assert any(name.startswith("encoder.layer.0.") for name in touched)
    assert not any(name.startswith(("encoder.layer.1.", "encoder.layer.2.")) for name in touched)


def test_nothing_is_kept_that_is_not_asked_for(bert):
    batch = texts(bert.input, "w2 w3")
    Student(bert, {}, layers=["hidden.1", "qkv.1"])
    student = Student(bert, {"logits": 3})
    assert list(student(batch)) == ["features", "logits"] and not bert.kept()
    assert not any(module._forward_hooks for module in student.modules())
    assert Student(bert, {}, layers=["hidden.1"]).state_dict().keys() == Student(bert, {}).state_dict().keys()


def test_a_copy_keeps_its_own(bert):
    student = Student(bert, {}, layers=["hidden.2"]).eval()
    twin = copy.deepcopy(student)
    with torch.no_grad():
        twin.backbone.network.embeddings.word_embeddings.weight.add_(1)
        twin.backbone.network.encoder.layer[1].output.LayerNorm.bias.add_(5)
    batch = texts(bert.input, "w2 w3 w4")
    own, copied = student(batch)["hidden.2"], twin(batch)["hidden.2"]
    assert not torch.allclose(own, copied)
    assert torch.equal(student(batch)["hidden.2"], own)


COMPILED = """
import torch
from student.models import Student, build_backbone
from tests.student.test_models import text_input, texts

layers, input = ["hidden.1", "qkv.2"], text_input()
student = Student(build_backbone("bert:2x64", input).eval(), {}, layers=layers)
batch = texts(input, "w2 w3 w4", "w5")
expected, found = student(batch), torch.compile(student, backend="eager", fullgraph=True)(batch)
assert list(found) == ["features", *layers]
for value in expected:
    torch.testing.assert_close(found[value], expected[value])
"""


def test_compiled_as_one_graph_it_gives_the_same():
    # in a process of its own, because the checks of types that run in tests break the graph
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=Path(__file__).parents[2])


def test_a_backbone_without_layers_is_refused():
    assert not isinstance(BagOfBytes(), Layered)
    with pytest.raises(UsageError, match=r"bag-of-bytes does not give hidden\.1"):
        Student(BagOfBytes(), {}, layers=["hidden.1"])
