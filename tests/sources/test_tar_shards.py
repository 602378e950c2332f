"""Webdataset tars, whole, damaged and hostile."""

import json
import pickle
import tarfile

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from featurecache.errors import SourceError
from featurecache.sources import TarShards, decode
from featurecache.types import NO_LABEL, Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import DATA, picture, write_members, write_tar

GLYPHS = DATA / "glyphs-test-000000.tar"


class TestTarShards(SourceContract):
    valid = 4

    def make_source(self, tmp_path):
        first = {"a.cls": b"cat", "a.png": picture(0), "b.json": b"{}", "b.png": picture(1), "b.cls": b"dog"}
        second = {"a.png": picture(2), "lost.cls": b"dog", "n/c.d.PNG": picture(3), "n/e.JPG": picture(4, "JPEG")}
        return TarShards([write_tar(tmp_path / "2.tar", second), write_tar(tmp_path / "1.tar", first)])


class TestTextTar(SourceContract):
    def make_source(self, tmp_path):
        return TarShards(write_tar(tmp_path / "t.tar", {"1.txt": b"one", "1.cls": b"3", "2.txt": "zwölf".encode()}))


class TestGlyphs(SourceContract):
    def make_source(self, tmp_path):
        return TarShards(GLYPHS)


def test_glyphs_are_what_tarfile_reads():
    source = TarShards([GLYPHS])
    with tarfile.open(GLYPHS) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    stems = list(dict.fromkeys(name.partition(".")[0] for name in members))
    assert list(source.keys) == [f"glyphs-test-000000/{stem}" for stem in stems]
    assert source.class_names == tuple(map(str, range(10))) and source.modality == "image"
    for stem, sample in zip(stems, source.iter(0, len(source)), strict=True):
        assert sample.encoded == members[f"{stem}.png"] and sample.label == int(members[f"{stem}.cls"])
        assert "ABCDEFGHIJ"[sample.label] == stem[0]


def test_keys_and_order_are_those_of_webdataset(tmp_path):
    names = ["./d/x.png", "a.b/c.d.png", "a.b/c.png", ".hidden.png", "plain", "n/e.tar.png", "q.seg.png", "q.png"]
    tar = write_tar(tmp_path / "x.tar", {name: picture(number) for number, name in enumerate(names)})
    with tar.open("rb") as stream:
        theirs = [
            sample["__key__"]
            for sample in group_by_keys({"__url__": "", **member} for member in tar_file_iterator(stream))
        ]
    assert list(TarShards(tar).keys) == [f"x/{key}" for key in theirs] == ["x/./d/x", "x/a.b/c", "x/n/e", "x/q"]


def test_members_that_are_not_data_are_never_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    members = {"a.pkl": b"cos\nsystem\n(S'false'\ntR.", "a.pyd": b"\x80", "a.png": picture(0), "a.cls": b"1"}
    source = TarShards(write_tar(tmp_path / "x.tar", members))
    assert [(sample.key, sample.encoded, sample.label) for sample in source.iter(0, 1)] == [("x/a", picture(0), 1)]


def test_links_and_names_that_climb_touch_nothing(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(9))
    symlink, hardlink, device = (tarfile.TarInfo(name) for name in ("s.png", "h.png", "dev.png"))
    symlink.type, symlink.linkname = tarfile.SYMTYPE, "secret.png"
    hardlink.type, hardlink.linkname = tarfile.LNKTYPE, "../../secret.png"
    device.type = tarfile.CHRTYPE
    climbing = (tarfile.TarInfo("../../up.png"), picture(1))
    absolute = (tarfile.TarInfo("/abs.png"), picture(2))
    tar = write_members(tmp_path / "in/x.tar", [(symlink, b""), (hardlink, b""), (device, b""), climbing, absolute])
    source = TarShards(tar)
    assert {sample.key: sample.encoded for sample in source.iter(0, len(source))} == {
        "x/../../up": picture(1),
        "x//abs": picture(2),
    }
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "secret.png", "x.tar"]


def test_a_sample_without_its_member_is_invalid(tmp_path):
    source = TarShards(write_tar(tmp_path / "x.tar", {"a.cls": b"4", "b.png": picture(0), "c.txt": b"words"}))
    assert source.modality == "image"
    assert [sample.problem for sample in source.iter(0, 3)] == [Reason.UNREADABLE, Reason.VALID, Reason.UNREADABLE]
    assert source.labels.tolist() == [4, NO_LABEL, NO_LABEL] and len(source.class_names) == 5


def test_class_names_of_labels(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.png": picture(0), "a.cls": b"dog\n", "b.png": picture(1), "b.cls": b"cat"})
    assert TarShards(tar).class_names == ("cat", "dog") and TarShards(tar).labels.tolist() == [1, 0]
    assert TarShards(tar, class_names=["dog", "cat"]).labels.tolist() == [0, 1]
    with pytest.raises(SourceError, match="the label 'cat' is not among the 1 class names"):
        TarShards(tar, class_names=["dog"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"1", "a.jpg": b"2"}, "two members for its image: png and jpg"),
        ({"a.png": b"1", "b.png": b"2", "a.cls": b"0"}, "the same key 'x/a'"),
        ({"a.pkl": b"1"}, "no image or text"),
        ({}, "no image or text"),
        ({"a.png": b"1", "a.cls": b"x" * 5000}, "too long for a label"),
        ({"a.png": b"1", "a.cls": b"\xff"}, "a.cls is not UTF-8"),
        ({"a.png": b"1", "a.cls": b"9999999999"}, "9999999999 is no class index"),
        ({"a\udcff.png": b"1"}, "not valid UTF-8"),
    ],
)
def test_refused_contents(tmp_path, members, message):
    with pytest.raises(SourceError, match=message):
        TarShards(write_tar(tmp_path / "x.tar", members))


def test_duplicate_keys_across_tars(tmp_path):
    tars = [write_tar(tmp_path / folder / "x.tar", {"a.png": picture(0)}) for folder in "ab"]
    with pytest.raises(SourceError, match=r"row 0 .*a/x.tar.* and row 1 .*b/x.tar.* have the same key 'x/a'"):
        TarShards(tars)


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1024, 1536, 2048, 2560])
def test_a_truncated_tar_is_named(tmp_path, kept):
    tar = write_tar(tmp_path / "cut.tar", {"a.txt": b"one", "b.txt": b"two", "c.txt": b"three"})
    tar.write_bytes(tar.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"cut.tar is no whole tar"):
        TarShards(tar)


def test_every_cut_of_a_tar_is_found(tmp_path):
    whole = write_tar(tmp_path / "x.tar", {"a.txt": b"one", "b.txt": b"two" * 300}).read_bytes()
    end = whole.rindex(b"two") // 512 * 512 + 512
    for kept in range(0, end, 37):
        (tmp_path / "x.tar").write_bytes(whole[:kept])
        with pytest.raises(SourceError):
            TarShards(tmp_path / "x.tar")


def test_a_damaged_header_in_the_middle_is_found(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.txt": b"one", "b.txt": b"two"})
    content = bytearray(tar.read_bytes())
    content[1024 + 10] ^= 0xFF
    tar.write_bytes(content)
    with pytest.raises(SourceError, match="does not end as a tar does"):
        TarShards(tar)


def test_a_negative_size_ends(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.txt": b"one"})
    content = bytearray(tar.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfc\x00"
    checksum = sum(content[:148]) + 8 * 32 + sum(content[156:512])
    content[148:156] = b"%06o\0 " % checksum
    tar.write_bytes(content)
    with pytest.raises(SourceError, match="no whole tar"):
        TarShards(tar)


def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz"):
        pass
    with pytest.raises(SourceError, match="must be unpacked"):
        TarShards(tmp_path / "x.tar")


def test_a_tar_that_shrinks_gives_bad_samples(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.txt": b"one", "b.txt": b"two"})
    source = TarShards(tar)
    with tar.open("r+b") as stream:
        stream.truncate(600)
    assert [sample.problem for sample in source.iter(0, 2)] == [Reason.VALID, Reason.UNREADABLE]
    tar.unlink()
    assert pickle.loads(pickle.dumps(source))[0].problem is Reason.UNREADABLE


def test_many_tars_need_few_handles(tmp_path):
    tars = [write_tar(tmp_path / f"{number:03}.tar", {"a.txt": b"%d" % number}) for number in range(100)]
    source = TarShards(tars[::-1])
    assert [decode(sample, "text") for sample in source.iter(0, 100)] == [str(number) for number in range(100)]
    assert source._files._open.cache_info().currsize == 64


def test_fingerprint_ignores_labels_and_other_members(tmp_path):
    base = {"a.png": picture(0), "b.png": picture(1)}
    first = TarShards(write_tar(tmp_path / "1/x.tar", base)).fingerprint()
    labelled = write_tar(
        tmp_path / "2/x.tar",
        {"a.png": picture(0), "a.cls": b"1", "a.json": json.dumps({}).encode(), "b.png": picture(1)},
    )
    assert TarShards(labelled).fingerprint() == first
    assert TarShards(write_tar(tmp_path / "3/x.tar", base | {"b.png": picture(1) + b"!"})).fingerprint() != first
    assert TarShards(write_tar(tmp_path / "4/y.tar", base)).fingerprint() != first


def test_thousands_of_headers_for_one_member_are_damage(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"words"})
    header = tarfile.TarInfo.create_pax_global_header({"comment": "x"})
    path.write_bytes(header * 5000 + path.read_bytes())
    with pytest.raises(SourceError, match="x.tar is no whole tar"):
        TarShards(path)
