"""What a stranger's cache can make of the name and the options of its teacher, before that teacher is compared."""

from dataclasses import replace

import pytest

import featurecache.teachers
from featurecache.errors import CorruptCacheError, TeacherError
from featurecache.plan import plan_part
from featurecache.store.layout import EncodedOutput
from featurecache.types import OutputSpec
from pipelines.recompute import _described, load_again
from tests.small_caches import Texts, teacher
from tests.store.small_parts import teacher_part

IMAGE = {"kind": "image", "size": 224, "crop_pct": 0.9}
TIMM = {"library": "timm", "config": {"model_kwargs": {}}}
HF = {"library": "transformers", "outputs": {"embedding": {"pool": "mean"}}}


def part_of(identity, *, name="resnet50", seen=IMAGE, shape=(4,)):
    """A part that says this of its teacher."""
    part = teacher_part(10)
    return replace(
        part,
        identity={**part.identity, "teacher": identity, "input": seen},
        facts={"teacher": name, "teacher_id": "one", "input": seen},
        outputs=(EncodedOutput(OutputSpec("embedding", shape), "float16"),),
    )


@pytest.fixture
def asked(monkeypatch):
    """What `load_teacher` is asked for; it has nothing of it."""
    calls = []

    def refuse(name, **options):
        calls.append((name, options))
        raise TeacherError("not here")

    monkeypatch.setattr(featurecache.teachers, "load_teacher", refuse)
    return calls


def test_a_model_of_timm_is_asked_for_by_its_name(asked):
    for name in ("resnet50", "vit_base_patch16_224.augreg2_in21k_ft_in1k"):
        assert _described(part_of(TIMM, name=name)) == (f"timm:{name}", {"img_size": 224, "crop_pct": 0.9})


@pytest.mark.parametrize("name", ["../evil", "/tmp", "evil", "evil/", "a.b.c", "resnet50@main", "", "hf:x", "R\n"])
def test_a_name_that_could_lead_elsewhere_has_to_come_from_the_user(asked, name, tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TeacherError, match="does not say where its teacher is to be found"):
        load_again(part_of(TIMM, name=name), None, None, None)
    assert asked == []


@pytest.mark.parametrize(
    "part",
    [
        *(part_of(TIMM, seen={**IMAGE, "size": size}) for size in (50_000, 4097, True, "224", None, -1)),
        *(part_of(TIMM, seen={**IMAGE, "crop_pct": crop}) for crop in (1e-300, 0, 2, "1", None)),
        *(part_of(HF, seen={"kind": "text", "max_length": length}) for length in (2**40, "1", None)),
        part_of({**HF, "outputs": {"embedding": {"pool": []}}}, seen={"kind": "text", "max_length": 8}),
        part_of({"library": "random"}, shape=(2**28,)),
        part_of({"library": "random"}, shape=()),
        part_of({"library": "timm", "config": []}),
        part_of("timm"),
        part_of(TIMM, seen=[]),
        replace(part_of(TIMM), identity={"teacher": TIMM}),
        replace(part_of(TIMM), identity={"teacher": TIMM, "input": IMAGE, "precision": []}),
    ],
)
def test_what_no_teacher_has_is_refused_before_one_is_loaded(asked, part):
    with pytest.raises(CorruptCacheError, match=r"part\.json does not say what its teacher is"):
        load_again(part, None, None, None)
    assert asked == []


def test_the_second_try_keeps_what_the_user_gave(asked):
    own = {"model_kwargs": {"classes": 3}}
    with pytest.raises(TeacherError):
        load_again(part_of(TIMM), "torch:mine", "weights", own["model_kwargs"])
    common = {"modality": "image", "weights": "weights", **own}
    assert asked == [("torch:mine", {**common, "img_size": 224, "crop_pct": 0.9}), ("torch:mine", common)]


def test_there_is_no_second_try_without_options_of_the_cache(asked):
    text = {"kind": "text", "max_length": 8}
    for teacher_name, part in (("torch:mine", part_of({"library": "torch"}, seen=text)), (None, part_of(TIMM))):
        asked.clear()
        with pytest.raises(TeacherError):
            load_again(part, teacher_name, None, {"classes": 3})
        assert len(asked) == 1


def test_an_output_that_the_teacher_does_not_give():
    part = plan_part(teacher(), Texts({"a": "some text"}), "train")
    assert load_again(part, None, None, None).identity() == teacher().identity()
    more = EncodedOutput(OutputSpec("tokens", (4,)), "float16")
    with pytest.raises(CorruptCacheError, match="an output tokens that its teacher does not give"):
        load_again(replace(part, outputs=(*part.outputs, more)), None, None, None)
