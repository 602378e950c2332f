"""Tokenizers by themselves, without the network that they are for."""

from pathlib import Path

from featurecache.errors import TeacherError, UnknownNameError
from featurecache.inputs import TextInput
from featurecache.teachers.resolve import resolve_name

__all__ = ["find_tokenizer"]

_HINT = "give a tokenizer.json, a folder with one, or a teacher's name such as minilm"


def find_tokenizer(spec: str) -> str:
    """The text of the tokenizer.json that `spec` names: a file, a folder with one, or a teacher of texts, whose weights
    are not loaded. Raises TeacherError for what has no tokenizer."""
    path = Path(spec)
    text = _read(path) if path.is_file() else _of_folder(path) if path.is_dir() else _of_teacher(spec)
    try:
        TextInput(text).prepare("a trial")
    except Exception as error:  # noqa: BLE001 - the tokenizers package raises nothing more exact
        raise TeacherError(f"{spec} is no tokenizer: {error}", hint=_HINT) from None
    return text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise TeacherError(f"{file} is no tokenizer: {error}", hint=_HINT) from None


def _of_folder(folder: Path) -> str:
    from featurecache.teachers.transformers_text import tokenizer_json

    return tokenizer_json(folder)


def _of_teacher(spec: str) -> str:
    try:
        kind, _, name = resolve_name(spec).partition(":")
    except UnknownNameError as error:
        raise TeacherError(f"no tokenizer is called {spec!r}, and there is no such file", hint=_HINT) from error
    if kind == "random":
        from featurecache.teachers.random_projection import byte_tokenizer_json

        return byte_tokenizer_json()
    if kind != "hf":
        raise TeacherError(f"{spec} is a {kind} model, whose tokenizer is not known", hint=_HINT)
    from featurecache.teachers.transformers_network import open_folder

    return _of_folder(open_folder(name))
