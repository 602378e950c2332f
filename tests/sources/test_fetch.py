"""Files over http: whole, interrupted, changed and refused."""

import errno
import os

import pytest

from featurecache.errors import DiskFullError, SourceError
from featurecache.sources import fetch as module
from featurecache.sources.fetch import bare, fetch

CONTENT = os.urandom(3_000_000)
HALF = 1_500_000


@pytest.fixture
def part(tmp_path):
    return tmp_path / "x.part"


@pytest.fixture
def get(web, part):
    """Fetch /x.tar; returns the room that was asked for."""
    web.files["/x.tar"] = CONTENT

    def run():
        room = []
        fetch(f"{web.address}/x.tar", part, make_room=room.append)
        return room

    return run


def ranges(web):
    return [headers.get("Range") for _, headers in web.asked]


def test_a_whole_file(get, part, web):
    assert get() == [3_000_000] and part.read_bytes() == CONTENT
    assert [path.name for path in part.parent.iterdir()] == ["x.part"]
    assert web.asked[0][1]["Accept-Encoding"] == "identity" and "Authorization" not in web.asked[0][1]


def test_a_broken_connection_is_gone_on_with(get, part, web):
    web.drops["/x.tar"] = [HALF, 500_000]
    assert get() == [3_000_000, HALF, 1_000_000] and part.read_bytes() == CONTENT
    assert ranges(web) == [None, f"bytes={HALF}-", "bytes=2000000-"]


def test_an_interrupted_run_is_gone_on_with(get, part, web):
    web.drops["/x.tar"] = [HALF, 0, 0, 0, 0]
    with pytest.raises(SourceError, match=r"cannot fetch http://127.*/x.tar: .*\(hint: .*goes on where it stopped"):
        get()
    assert part.stat().st_size == HALF and len(web.asked) == 5
    web.drops.clear()
    assert get() == [HALF] and part.read_bytes() == CONTENT


def test_progress_starts_the_tries_again(get, part, web):
    web.drops["/x.tar"] = [100_000, 0, 0] * 8
    get()
    assert part.read_bytes() == CONTENT and len(web.asked) == 25


def test_a_server_without_ranges(get, part, web):
    web.ranges = False
    web.drops["/x.tar"] = [HALF]
    assert get() == [3_000_000] * 2 and part.read_bytes() == CONTENT


def test_without_a_version_nothing_is_gone_on_with(get, part, web):
    web.validators = False
    web.drops["/x.tar"] = [HALF]
    get()
    assert part.read_bytes() == CONTENT and ranges(web) == [None, None]


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("size", [3_000_000, 2_000_000, 1000])
def test_a_file_that_changes_in_between_starts_again(get, part, web, honest, size):
    web.drops["/x.tar"] = [HALF, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        get()
    web.drops.clear()
    web.honest, web.files["/x.tar"] = honest, CONTENT[::-1][:size]
    get()
    assert part.read_bytes() == CONTENT[::-1][:size]


def test_an_answer_that_does_not_say_its_version_is_not_joined(get, part, web):
    web.drops["/x.tar"] = [HALF, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        get()
    web.drops.clear()
    web.honest, web.repeats, web.files["/x.tar"] = False, False, CONTENT[::-1]  # as long as the former one
    get()
    assert part.read_bytes() == CONTENT[::-1]


def test_a_server_that_asks_for_patience_is_waited_for(get, part, web, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        web.headers["Retry-After"] = "7200"
        if len(slept) == 9:
            web.status.clear()

    monkeypatch.setattr(module.time, "sleep", sleep)
    web.status["/x.tar"], web.headers["Retry-After"] = 429, "2"
    get()
    assert slept == [2] + [300] * 8 and part.read_bytes() == CONTENT


def test_dates_and_nonsense_are_no_patience(get, web, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    web.status["/x.tar"], web.headers["Retry-After"] = 503, "Wed, 21 Oct 2026 07:28:00 GMT"
    with pytest.raises(SourceError, match="status 503"):
        get()
    assert slept == [0.0] * 3


def test_https_does_not_become_http(part):
    import httpx2

    def answer(request):
        if request.url.scheme == "http":
            return httpx2.Response(200, content=b"anything")
        return httpx2.Response(302, headers={"Location": "http://mirror/x.tar?sig=secret"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True) as client,
        pytest.raises(SourceError, match="https://host/x.tar is sent on to an address without https"),
    ):
        module._try_often(client, "https://host/x.tar", part, lambda _: None)
    assert not part.exists()


def test_names_of_hosts_that_are_none(part):
    with pytest.raises(SourceError, match="cannot fetch"):
        fetch(f"http://{'x' * 70}.invalid/x.tar", part, make_room=lambda _: None)


def test_the_hub_in_capitals_is_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    assert module._is_hub("HTTPS://HuggingFace.co/datasets/a") and not module._is_hub("https://huggingface.co.evil/a")


def test_a_file_that_is_whole_already_needs_no_request(get, part, web):
    part.write_bytes(CONTENT)
    module._notes(part).write_text('{"validator": "v", "size": 3000000}')
    assert get() == [] and web.asked == []


@pytest.mark.parametrize("notes", ["", "[]", '{"validator": 3, "size": 2}', '{"validator": "v", "size": "2"}'])
def test_notes_that_make_no_sense_start_again(get, part, web, notes):
    part.write_bytes(b"12")
    module._notes(part).write_text(notes)
    get()
    assert part.read_bytes() == CONTENT and ranges(web) == [None]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"nothing at http://127.*/x.tar \(status 404\)"),
        (403, r"may not be read \(status 403\)  \(hint: ask its owner"),
        (401, r"may not be read \(status 401\)"),
        (400, r"cannot fetch .* \(status 400\)"),
        (503, r"cannot fetch .*: status 503"),
        ((302, "ftp://host/x.tar"), "cannot fetch"),
        ((302, "/x.tar"), "redirects"),
    ],
)
def test_refusals(get, part, web, status, message):
    web.status["/x.tar"] = status
    with pytest.raises(SourceError, match=message) as error:
        get()
    assert error.value.hint and not part.exists()


def test_a_server_that_recovers(get, part, web, monkeypatch):
    web.status["/x.tar"] = 503
    monkeypatch.setattr(module.time, "sleep", lambda _: web.status.clear())
    get()
    assert part.read_bytes() == CONTENT


def test_a_full_disk(get, part, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskFullError, match=r"no space left for .*x.part.*FC_DATA_CACHE"):
            get()
    assert get() == [] and part.read_bytes() == CONTENT


def test_no_server_and_no_such_host(part):
    for url in ("http://127.0.0.1:9/x.tar", "http://host.invalid/x.tar"):
        with pytest.raises(SourceError, match=f"cannot fetch {url}: .*check the address"):
            fetch(url, part, make_room=lambda _: None)


def test_the_token_goes_to_the_hub_alone(get, part, web, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert "Authorization" not in web.asked[0][1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.address)
    part.unlink()
    elsewhere = web.address.replace("127.0.0.1", "localhost")
    web.files["/y.tar"], web.status["/x.tar"] = CONTENT, (302, f"{elsewhere}/y.tar")
    get()
    assert part.read_bytes() == CONTENT
    assert [headers.get("Authorization") for _, headers in web.asked[1:]] == ["Bearer hf_secret", None]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        get()


def test_gated_files_of_the_hub(part, web, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.address)
    web.status["/datasets/org/set/resolve/main/x.tar"] = 403
    with pytest.raises(SourceError, match=f"accept the terms at {web.address}/datasets/org/set, .*hf auth login"):
        fetch(f"{web.address}/datasets/org/set/resolve/main/x.tar", part, make_room=lambda _: None)


def test_signatures_stay_out_of_messages():
    assert bare("https://me:secret@host:1/a/x.tar?sig=secret#part") == "https://host:1/a/x.tar"
