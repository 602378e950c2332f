"""One file over http into a local one; what a broken connection leaves is gone on with, unless the file has changed."""

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from featurecache.errors import DiskFullError, SourceError

if TYPE_CHECKING:
    import httpx2

__all__ = ["bare", "fetch"]

_PAUSES = (1.0, 4.0, 10.0)
"""Seconds before another try after a broken connection; what was fetched in between starts them again."""
_MAX_TRIES = 1000


_MAX_WAIT = 300


class _BrokenError(Exception):
    """This try ended early; another may go further, after the seconds that the server asked for."""

    def __init__(self, message: str, *, wait: int = 0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of a file that is partly here."""

    validator: str | None = None
    """ETag or Last-Modified: with neither, a part cannot be gone on with."""
    size: int | None = None
    """Bytes of the whole file."""


def fetch(url: str, part: Path, *, make_room: Callable[[int], None]) -> None:
    """Fill the file `part` with all that is at `url`; `make_room(bytes)` is called before that many are written.

    A part from an earlier run is gone on with. A broken connection is tried again three times, and again after each
    progress; a server that says how long to wait is waited for. Raises SourceError where the server refuses, cannot be
    reached, or sends an https address on to http; DiskFullError; and OSError where the part cannot be written.
    """
    import httpx2

    # it drops the authorization where it is sent on to another host
    with httpx2.Client(follow_redirects=True, timeout=httpx2.Timeout(60, connect=15)) as client:
        _try_often(client, url, part, make_room)


def bare(url: str) -> str:
    """The URL for messages and notes: without a password, and without a query, which may hold a signature."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _try_often(client: "httpx2.Client", url: str, part: Path, make_room: Callable[[int], None]) -> None:
    failures = 0
    for _ in range(_MAX_TRIES):
        before = _size(part)
        try:
            _try(client, url, part, make_room)
        except _BrokenError as error:
            if not error.wait:
                failures = 0 if _size(part) > before else failures + 1
            if failures > len(_PAUSES):
                raise _unreachable(url, error) from error
            time.sleep(error.wait or _PAUSES[max(0, failures - 1)])
        else:
            _notes(part).unlink(missing_ok=True)
            return
    raise _unreachable(url, "it breaks off again and again")


def _try(client: "httpx2.Client", url: str, part: Path, make_room: Callable[[int], None]) -> None:
    import httpx2

    known, have = _read_part(part)
    if have and have == known.size:
        return
    headers = {"Accept-Encoding": "identity", **_authorization(url)}
    if have and known.validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    try:
        with client.stream("GET", url, headers=headers) as response:
            _check(url, response)
            if not _continues(response, known, have):
                part.unlink(missing_ok=True)  # before its notes are: a part never has those of another version
            _receive(response, part, make_room)
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects, UnicodeError) as error:
        raise SourceError(f"cannot fetch {bare(url)}: {error}", hint="check the address") from error
    except httpx2.TransportError as error:
        raise _BrokenError(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "make room, or set FC_DATA_CACHE to a folder on a larger disk; run again and it goes on"
            raise DiskFullError(f"no space left for {part}", hint=hint) from error
        raise


def _continues(response: "httpx2.Response", known: _Part, have: int) -> bool:
    """Whether an answer goes on with the part that is here; a server that does not know If-Range may send another."""
    if response.status_code != 206:  # 200: the whole file; 416: the file is shorter than the part
        return False
    same = _validator(response) == known.validator  # one that is not told proves nothing
    return same and _extent(response) == (have, known.size)


def _receive(response: "httpx2.Response", part: Path, make_room: Callable[[int], None]) -> None:
    start, size = _extent(response)
    if response.status_code == 416 or start != _size(part):
        raise _BrokenError("the file has changed")
    _notes(part).write_text(json.dumps(asdict(_Part(_validator(response), size))))
    make_room((size or 0) - start)
    with part.open("ab") as stream:
        for chunk in response.iter_raw():
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if size is not None and _size(part) != size:
        raise _BrokenError(f"{_size(part):,} of {size:,} bytes came")


def _check(url: str, response: "httpx2.Response") -> None:
    status = response.status_code
    hops = [hop.url.scheme for hop in (*response.history, response)]
    if "https" in hops and "http" in hops[hops.index("https") :]:
        raise SourceError(f"{bare(url)} is sent on to an address without https", hint="ask its owner for another")
    if status in (200, 206, 416):
        return
    if status == 429 or status >= 500:
        raise _BrokenError(f"status {status}", wait=_asked_to_wait(response))
    if status in (401, 403):
        raise SourceError(f"{bare(url)} may not be read (status {status})", hint=_rights_hint(url))
    what = "there is nothing at" if status in (404, 410) else "cannot fetch"
    raise SourceError(f"{what} {bare(url)} (status {status})", hint="check the address and the numbers of a pattern")


def _asked_to_wait(response: "httpx2.Response") -> int:
    """Seconds, 0 where none are told."""
    given = response.headers.get("retry-after", "")
    return min(int(given[:9]), _MAX_WAIT) if given.isascii() and given.isdigit() else 0


def _extent(response: "httpx2.Response") -> tuple[int, int | None]:
    """First byte of the answer and size of the whole file, where it is told."""
    try:
        if response.status_code == 206:
            _, _, given = response.headers["content-range"].partition(" ")
            span, _, size = given.partition("/")
            return int(span.partition("-")[0]), None if size == "*" else int(size)
        length = response.headers.get("content-length")
        return 0, None if length is None else int(length)
    except (KeyError, ValueError):
        raise _BrokenError("an answer that does not say which bytes it has") from None


def _validator(response: "httpx2.Response") -> str | None:
    tag = response.headers.get("etag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("last-modified")


def _authorization(url: str) -> dict[str, str]:
    """The user's token for the hub's own host, and for no other. Raises SourceError for the hub in offline mode."""
    if not _is_hub(url):
        return {}
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise SourceError(f"{bare(url)} is not here, and HF_HUB_OFFLINE is set", hint="unset it, or give a local copy")
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_hub(url: str) -> bool:
    from huggingface_hub import constants

    mine, theirs = urlsplit(url), urlsplit(constants.ENDPOINT)
    return (mine.scheme, mine.netloc.lower()) == (theirs.scheme, theirs.netloc.lower())


def _rights_hint(url: str) -> str:
    if _is_hub(url):
        page = bare(url).partition("/resolve/")[0]
        return f"accept the terms at {page}, then log in with `hf auth login`"
    return "ask its owner for access; or download it another way and give the local file"


def _unreachable(url: str, reason: object) -> SourceError:
    return SourceError(
        f"cannot fetch {bare(url)}: {reason}",
        hint="check the address and the connection, then run again: it goes on where it stopped; local files need none",
    )


def _read_part(part: Path) -> tuple[_Part, int]:
    """What the notes say, and how many bytes can be gone on with: none without a validator."""
    try:
        notes = json.loads(_notes(part).read_text())
        validator, size = notes["validator"], notes["size"]
        if not isinstance(validator, str) or not isinstance(size, int | None):
            return _Part(), 0
        return _Part(validator, size), _size(part)
    except (OSError, ValueError, KeyError, TypeError):
        return _Part(), 0


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
