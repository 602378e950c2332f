"""What the transformers teachers share: a frozen network read from one local folder, and one pass through it."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from featurecache.errors import TeacherError
from featurecache.fingerprint import content_hash, hash_tensors
from featurecache.layers import Taps, as_tokens, attention_taps, layer_specs
from featurecache.teachers.weights import (
    commit_of,
    fetch_folder,
    is_commit,
    license_of_folder,
    split_revision,
    weights_file,
)
from featurecache.types import Json, OutputSpec

__all__ = ["Network", "open_folder"]

_MOST_STAGES = 64
"""Of a network that does not say how many layers it has."""

# what the weights and the task already say, or what only says how the file came to be
_NOT_COMPUTATION = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def open_folder(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """A local folder as it is, or the local copy of ORG/NAME[@REVISION] of the hub. Raises TeacherError.

    The model's own code is refused unless its revision is a commit: a branch can get other code at any time.
    """
    name, inline = (str(name), None) if Path(name).is_dir() else split_revision(str(name))
    revision = revision or inline
    if trust_remote_code and not is_commit(revision):
        raise TeacherError(
            "running a model's own code needs a revision of 40 hexadecimal digits", hint="name it as hf:ORG/NAME@COMMIT"
        )
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1:
        raise TeacherError(f"{name!r} is neither a folder nor ORG/NAME of the hub")
    return fetch_folder(name, revision=revision, code=trust_remote_code)


class Network:
    """A frozen transformers model; `body_output` of a pass is what it computed before any head."""

    def __init__(
        self, folder: Path, *, head: str, weights: str | Path | None = None, trust_remote_code: bool = False
    ) -> None:
        """`head` ends the names of architectures that have logits: "ForSequenceClassification". Raises TeacherError."""
        self.revision = commit_of(folder)
        self.license = None if weights else license_of_folder(folder)
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        transformers.utils.logging.disable_progress_bar()
        with _staged(folder, weights) as staged, _reported(folder):
            self.config = transformers.AutoConfig.from_pretrained(staged, **options)
            self._auto = _auto_class(self.config, head)
            self.model, report = self._auto.from_pretrained(
                staged, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
            )
        missing = sorted(report["missing_keys"])
        self.has_pooler = not any("pooler" in name for name in missing)
        """False where the checkpoint has no weights for it, so that its output would be random."""
        if absent := [name for name in missing if "pooler" not in name]:
            raise TeacherError(f"the weights lack {len(absent)} tensors ({', '.join(absent[:3])})")
        self.model.eval().requires_grad_(False)
        self._weights_sha256 = hash_tensors({k: v for k, v in self.model.state_dict().items() if k not in missing})
        self._code = {path.name: content_hash(path.read_bytes()) for path in folder.glob("*.py") if trust_remote_code}
        self._body: Any = None
        self.model.base_model.register_forward_hook(self._keep)
        self._taps = attention_taps(
            self.model.base_model,
            layers=getattr(self.config, "num_hidden_layers", 0),
            heads=getattr(self.config, "num_attention_heads", 0),
        )

    def __call__(self, further: Sequence[str] = (), **inputs: Any) -> tuple[Any, Tensor | None, dict[str, Tensor]]:
        """One pass: what the body gave (last_hidden_state, pooler_output), logits (batch, classes) or None, and those
        of `further` that there are, (batch, tokens, width) by name."""
        options = {"output_hidden_states": True} if any(name.startswith("hidden.") for name in further) else {}
        taps = Taps({name: tap for name, tap in self._taps.items() if name in further})
        try:
            with torch.inference_mode():
                output = self.model(**inputs, **options, return_dict=True)
                layers = taps.take()
        finally:
            taps.close()
        body, self._body = self._body, None
        states = {f"hidden.{number}": state for number, state in enumerate(getattr(body, "hidden_states", None) or ())}
        layers |= {name: as_tokens(state) for name, state in states.items() if name in further}
        return body, getattr(output, "logits", None), {name: layers[name] for name in further if name in layers}

    def further(self, *, longest: int = 0, **inputs: Any) -> tuple[OutputSpec, ...]:
        """What `__call__` can give of layers, by one pass with one sample; `longest` as of `layer_specs`."""
        states = [f"hidden.{number}" for number in range(getattr(self.config, "num_hidden_layers", _MOST_STAGES) + 1)]
        _, _, layers = self([*states, *self._taps], **inputs)
        return layer_specs(self._taps, layers, longest=longest)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels of the configuration in order; empty where they are only numbered (LABEL_0, LABEL_1, ...)."""
        names = tuple(str(self.config.id2label[index]) for index in sorted(self.config.id2label))
        return () if all(name.startswith("LABEL_") for name in names) else names

    def identity(self, outputs: Json) -> Json:
        """Architecture, settings that differ from its class's own, output selectors, and the hash of the weights."""
        default = type(self.config)().to_dict()
        changed = {name: value for name, value in self.config.to_dict().items() if value != default.get(name)}
        config = {name: value for name, value in changed.items() if name not in _NOT_COMPUTATION}
        return {
            "library": "transformers",
            "model": type(self.model).__name__,
            "config": {**config, "code": self._code} if self._code else config,
            "outputs": outputs,
            "weights_sha256": self._weights_sha256,
        }

    def _keep(self, _module: object, _args: object, output: Any) -> None:
        self._body = output


def _auto_class(config: Any, head: str) -> Any:
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        hint = "for images take its vision tower from timm, such as timm:vit_base_patch16_clip_224.openai"
        raise TeacherError(f"{config.model_type} has a text and an image tower", hint=hint)
    if (config.architectures or [""])[0].endswith(head):
        return getattr(transformers, f"AutoModel{head}")
    if not getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModel
    if type(config) not in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise TeacherError(f"{config.model_type} is an encoder-decoder, which has no single embedding")
    return transformers.AutoModelForTextEncoding


@contextmanager
def _staged(folder: Path, weights: str | Path | None) -> Iterator[Path]:
    # transformers reads configuration and weights from one place
    if weights is None:
        yield folder
        return
    file = weights_file(weights).resolve()
    with tempfile.TemporaryDirectory() as staged:
        for path in (folder / "config.json", *folder.glob("*.py")):
            shutil.copy(path, staged)
        (Path(staged) / "model.safetensors").symlink_to(file)
        yield Path(staged)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except TeacherError:
        raise
    except Exception as error:  # transformers raises nearly every class for a folder that it cannot load
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "the folder needs config.json and *.safetensors; models with code of their own need --trust-remote-code"
        raise TeacherError(f"transformers cannot load {folder}: {lines[0]}", hint=hint) from error
