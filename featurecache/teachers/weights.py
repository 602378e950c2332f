"""Where weights come from: safetensors on disk, or the model hub at one commit."""

import itertools
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download
from safetensors import SafetensorError, safe_open

from featurecache.errors import TeacherError

__all__ = [
    "commit_of",
    "fetch_file",
    "fetch_folder",
    "is_commit",
    "license_name",
    "license_of_folder",
    "split_revision",
    "tensor_shapes",
    "weights_file",
]

_OFFLINE_HINT = "without a network use --weights FILE.safetensors, a local model folder, or a filled cache (HF_HOME)"
_FOLDER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "original/*")
_ASK_SECONDS = 10
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+_-]{0,63}")
_MOST_CARD_BYTES = 2**16


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit hash, which nobody can move."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def split_revision(name: str) -> tuple[str, str | None]:
    """ "NAME@REVISION" -> (NAME, REVISION); the revision is None where there is none."""
    name, _, revision = name.partition("@")
    return name, revision or None


def weights_file(path: str | Path) -> Path:
    """The path of an existing, readable safetensors file. Raises TeacherError: pickled weights can run code."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise TeacherError(
            f"{path.name} is not a safetensors file",
            hint="pickled weights can run code; convert them once with safetensors.torch.save_file",
        )
    if not path.is_file():
        raise TeacherError(f"there is no weights file {path}")
    tensor_shapes(path)
    return path


def license_name(value: object) -> str | None:
    """The name of a licence as its owner wrote it, if it is one; anybody may have written anything."""
    return value if isinstance(value, str) and _LICENSE.fullmatch(value) else None


def license_of_folder(folder: Path) -> str | None:
    """What the README.md of a model's folder states in its front matter, such as "apache-2.0"."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_CARD_BYTES).splitlines()
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    head = itertools.takewhile(lambda line: line.strip() != "---", lines[1:])
    stated = {
        name: value.strip().strip("'\"") for name, colon, value in (line.partition(":") for line in head) if colon
    }
    own = stated.get("license_name") if stated.get("license") == "other" else None
    return license_name(own or stated.get("license"))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, from its header alone. Raises TeacherError where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TeacherError(f"{path} is not a whole safetensors file: {error}") from error


def commit_of(path: Path) -> str | None:
    """The commit in a hub cache path (.../snapshots/<commit>/...), for provenance; None elsewhere."""
    following = itertools.pairwise(path.parts)
    return next((after for part, after in following if part == "snapshots" and is_commit(after)), None)


def fetch_file(repository: str, filename: str, *, revision: str | None = None) -> Path:
    """One file of a hub repository: from the local cache if it is there, else downloaded. Raises TeacherError."""
    try:
        return Path(hf_hub_download(repository, filename, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        _ask_hub(repository, revision)
    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # the hub's client changes its network exceptions between versions
        raise _not_fetched(f"{repository}/{filename}", error) from error


def fetch_folder(repository: str, *, revision: str | None = None, code: bool = False) -> Path:
    """Configuration, tokenizer, safetensors of a hub repository; Python files only if `code`. Raises TeacherError."""
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [*_FOLDER_FILES, "*.py"] if code else list(_FOLDER_FILES),
        "ignore_patterns": list(_OTHER_RUNTIMES),
    }
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **options))
        if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    _ask_hub(repository, revision)
    try:
        return Path(snapshot_download(repository, **options))
    except Exception as error:  # as above
        raise _not_fetched(repository, error) from error


def _ask_hub(repository: str, revision: str | None) -> None:
    # a download retries for half a minute before it says that there is no network; this question fails at once
    try:
        HfApi().model_info(repository, revision=revision, timeout=_ASK_SECONDS)
    except Exception as error:
        raise _not_fetched(repository, error) from error


def _not_fetched(what: str, error: Exception) -> TeacherError:
    if isinstance(error, errors.GatedRepoError):
        return TeacherError(f"{what} is gated", hint="accept its terms on the hub, then `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return TeacherError(f"{what} has no such revision", hint="revisions are branches, tags or commits of 40 digits")
    if isinstance(error, errors.RepositoryNotFoundError):
        return TeacherError(f"the hub has no model {what}, or it is private", hint="check the name, or `hf auth login`")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return TeacherError(f"the hub has no {what}", hint="only safetensors are loaded; convert the weights first")
    reason = str(error).strip().splitlines()
    return TeacherError(f"cannot fetch {what} ({reason[0] if reason else type(error).__name__})", hint=_OFFLINE_HINT)
