"""Licences beside weights: read without trust, kept in a part's provenance, never in its identity."""

import json

import pytest
import timm
from safetensors.torch import save_file

from featurecache.augment import find_augmentation
from featurecache.plan import more_views, plan_part
from featurecache.sources import open_data
from featurecache.teachers import load_teacher
from featurecache.teachers.timm_model import TimmTeacher
from featurecache.teachers.weights import license_of_folder
from tests.hub_stand_in import COMMIT, write_hub_cache
from tests.teachers.test_transformers_text import write_bert


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\r\nlicense: CC-BY-NC-4.0\r\n---\r\n", "CC-BY-NC-4.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\nlicense_link: x\n---\n", "dinov3-license"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: <script>alert(1)</script>\n---\n", None),
        (f"---\nlicense: {'x' * 65}\n---\n", None),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
        (b"---\nlicense: \xff\n---\n", None),
        (None, None),
    ],
)
def test_what_a_card_states(card, name, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert license_of_folder(tmp_path) == name


def provenance(teacher, data):
    (source,) = open_data(data, splits=["train"]).values()
    return plan_part(teacher, source, "train")


def test_a_transformers_folder(tmp_path):
    write_bert(tmp_path)
    without = provenance(load_teacher(str(tmp_path), modality="text"), "synthetic-text:8")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    part = provenance(load_teacher(str(tmp_path), modality="text"), "synthetic-text:8")
    assert part.provenance["teacher"] == {"license": "mit"} and "teacher" not in without.provenance
    assert part.identity == without.identity and part.recipe_id == without.recipe_id


def test_a_timm_model_of_the_hub(hub_cache, tmp_path):
    write_hub_cache(hub_cache, "test_vit")
    part = provenance(TimmTeacher("test_vit"), "synthetic:8")
    stated = timm.get_pretrained_cfg("test_vit").license
    assert part.provenance["teacher"] == {"revision": COMMIT, "license": stated} and stated
    views = more_views(part, find_augmentation("standard"), seed=0, views=(1, 2))
    assert views.provenance["teacher"] == part.provenance["teacher"]
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "own.safetensors")
    own = provenance(TimmTeacher("test_vit", weights=tmp_path / "own.safetensors"), "synthetic:8")
    assert "teacher" not in own.provenance  # the table's licence is that of its own weights


def test_a_timm_folder_that_states_something_else(tmp_path):
    network = timm.create_model("test_resnet", num_classes=2)
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "# <b>\n"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "teacher" not in provenance(load_teacher(str(tmp_path)), "synthetic:8").provenance
