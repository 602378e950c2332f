"""Real images from one end to the other: a teacher is fitted on glyphs, cached, and a small student learns from it."""

from pathlib import Path

import numpy as np

from featurecache.store.reader import open_cache
from pipelines import evaluate_run, extract_cache, finish, fit_teacher, train_student

DATA = str(Path(__file__).parents[2] / "examples/data/glyphs")


def test_a_small_student_agrees_with_the_teacher_it_never_met(tmp_path):
    teacher, cache, run = tmp_path / "teacher", tmp_path / "cache", tmp_path / "run"
    given = {"mode": "fr", "img_size": 64, "epochs": 2.0, "device": "cpu"}
    fitted = finish(fit_teacher(model="timm:resnet10t", data=DATA, out=teacher, **given))
    assert fitted["classes"] == 10
    extracted = finish(extract_cache(teacher=str(teacher), data=DATA, out=cache, device="cpu"))
    assert all(split["invalid"] == {} for split in extracted["splits"].values())
    reader = open_cache(cache).split("test")
    assert reader.outputs["logits"].classes == reader.class_names == tuple("0123456789")
    given = {"student": "mobilenetv3_small_050", "objective": "kl(temperature=1),ce", "device": "cpu"}
    finish(train_student(cache=cache, out=run, epochs=8.0, **given))
    scores = finish(evaluate_run(run=run, device="cpu"))
    logits = reader.read(np.arange(len(reader)), outputs=["logits"])["logits"]
    assert scores["teacher_accuracy"] == (logits.argmax(1).numpy() == reader.labels).mean()
    # measured: teacher 0.92, student 0.74, agreement 0.72; chance is 0.1
    assert scores["rows"] == 300 and scores["teacher_accuracy"] > 0.75
    assert scores["accuracy"] > 0.5 and scores["agreement"] > 0.5
