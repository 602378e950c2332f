"""The webdataset tars of a data set repository on the Hugging Face hub, as URLs of one revision."""

import hashlib
import json
import re
from pathlib import Path

from featurecache.errors import SourceError
from featurecache.sources.downloads import data_cache, replace_text
from featurecache.types import Json

__all__ = ["IMAGENET", "hub_tars"]

IMAGENET = "timm/imagenet-1k-wds"
"""What the name `imagenet` stands for where no local copy has it."""

_NO_ANSWER_OF_THE_HUB = (ValueError, KeyError, TypeError, AttributeError)
"""What its client raises where something else answers, such as the page of a proxy."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_tars(repository: str, *, local: str) -> list[str]:
    """URLs of all tars in a data set repository.

    The list is kept beside the downloads, and used where the hub cannot be reached. Raises SourceError; `local` says
    where a local copy would be found.
    """
    from huggingface_hub import hf_hub_url

    note = data_cache() / f"{hashlib.sha256(repository.encode()).hexdigest()[:32]}.repository.json"
    listing = _listing(repository, note, local)
    revision = listing["revision"]
    return [hf_hub_url(repository, file, repo_type="dataset", revision=revision) for file in listing["files"]]


def _listing(repository: str, note: Path, local: str) -> Json:
    """{"revision": commit, "files": names of the tars}: as the hub has it now, or else as it had it last."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().dataset_info(repository, timeout=30)
    except HfHubHTTPError as error:
        known = _read_note(note)
        if known and error.response.status_code >= 500:
            return known
        raise _refused(repository, error, local) from error
    except (OfflineModeIsEnabled, httpx2.TransportError, OSError, *_NO_ANSWER_OF_THE_HUB) as error:
        if known := _read_note(note):
            return known
        hint = f"put a local copy at {local}, or connect to the hub for the first run"
        reason = "offline mode" if isinstance(error, OfflineModeIsEnabled) else str(error)
        raise SourceError(f"the hub's {repository} cannot be reached: {reason}", hint=hint) from error
    files = sorted(file.rfilename for file in info.siblings or () if file.rfilename.endswith(".tar"))
    if not files or not info.sha:
        raise SourceError(f"there are no tars in the hub's {repository}", hint=f"put a local copy at {local}")
    listing = {"revision": info.sha, "files": files}
    replace_text(note, json.dumps(listing))
    return listing


def _refused(repository: str, error: Exception, local: str) -> SourceError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in (401, 403) or isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/datasets/{repository}"
        hint = f"accept the terms at {page}, then log in with `hf auth login`; or put a local copy at {local}"
        return SourceError(f"the hub does not give {repository} to you (status {status})", hint=hint)
    return SourceError(
        f"the hub cannot give {repository} now (status {status})",
        hint=f"try again later, or put a local copy at {local}",
    )


def _read_note(note: Path) -> Json:
    try:
        listing = json.loads(note.read_text(encoding="utf-8"))
        files = listing["files"]
        good = _COMMIT.fullmatch(listing["revision"]) and all(isinstance(file, str) for file in files)
        return listing if good else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
