"""The two commands of the README on a folder in ImageNet's layout, word for word, with no further flag."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache.store.reader import open_cache
from student.export import load_student
from tests.end_to_end.command import featurecache
from tests.hub_stand_in import write_hub_cache

WNIDS = ("n01440764", "n02102040", "n03028079")


@pytest.fixture
def place(tmp_path):
    """An empty folder to work in, and the environment: FC_DATA with imagenet inside, and a filled hub cache."""
    home, hub, here = tmp_path / "data", tmp_path / "hf", tmp_path / "here"
    here.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 4)):
        for wnid in WNIDS:
            folder = home / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((300, 240), Image.Resampling.BICUBIC)
                image.save(folder / f"{wnid}_{number}.JPEG", "JPEG")
    write_hub_cache(hub / "hub")
    return here, {"FC_DATA": str(home), "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}


def test_extract_and_train_student(place):
    here, env = place
    featurecache("extract --teacher vit_base --data imagenet", cwd=here, env=env)
    cache = open_cache(here / "cache")
    assert cache.splits == ["train", "val"]
    reader = cache.split("train")
    assert len(reader) == 12 and reader.class_names == WNIDS and reader.valid().all()
    assert reader.outputs["embedding"].shape == (768,) and reader.outputs["logits"].shape == (1000,)
    assert set(WNIDS) < set(reader.outputs["logits"].classes)

    featurecache("train-student --cache ./cache", cwd=here, env=env)
    run = here / "runs/mobilenetv3_small_100"
    recipe, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("recipe", "summary"))
    assert recipe["digest"] == summary["digest"] == cache.seal.digest
    assert recipe["objective"] == "kl,align-uniform,ce" and recipe["input"]["size"] == 224
    assert summary["student"] == "mobilenetv3_small_100" and summary["steps"] == 30
    assert summary["rows"]["training"] + summary["rows"]["validation"] == 12
    student, facts = load_student(run / "student")
    assert facts["digest"] == cache.seal.digest and facts["class_names"] == list(WNIDS)
    imagenet = reader.outputs["logits"].classes
    assert [imagenet[number] for number in facts["classes"]] == list(WNIDS)
    assert student.widths == {"logits": 1000} and student.shared == {"labels": "logits"}
    assert Path(run / "metrics.jsonl").is_file()
