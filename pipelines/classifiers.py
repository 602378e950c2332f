"""Networks that `fc fit-teacher` trains: logits named as cross-entropy reads them, saved as their library does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import timm.models
import transformers
from torch import Tensor, nn

from featurecache.teachers.timm_model import build_to_fit, image_input, locate
from featurecache.teachers.transformers_network import open_folder
from featurecache.teachers.transformers_text import TransformersText

__all__ = ["TextClassifier", "TimmClassifier"]


class TimmClassifier(nn.Module):
    """A timm model with a fresh classifier for these classes."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        *,
        pretrained: bool,
        img_size: int | None = None,
        weights: str | None = None,
    ) -> None:
        """`weights` is a safetensors file to start from, instead of the hub's. Raises TeacherError, UsageError."""
        super().__init__()
        network: Any
        if pretrained:
            network = build_to_fit(*locate(name, weights), is_exact=weights is not None)
            network.reset_classifier(len(class_names))
        else:
            network = timm.create_model(name.partition("@")[0], num_classes=len(class_names))
        self.network = network
        self.input = image_input(network, img_size, None)
        self.class_names = tuple(class_names)
        self._is_resized = img_size is not None and hasattr(network, "set_input_size")
        if self._is_resized:
            network.set_input_size(img_size)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"images": uint8 (batch, 3, size, size)} -> {"labels": float32 (batch, classes)}."""
        return {"labels": self.network(self.input.normalise(inputs["images"])).float()}

    def save(self, out: Path) -> None:
        """A folder in timm's hub format: config.json with class names and preprocessing, model.safetensors."""
        size = self.input.size
        config = {
            "num_classes": len(self.class_names),
            "label_names": list(self.class_names),
            "pretrained_cfg": {
                "input_size": [3, size, size],
                "test_input_size": [3, size, size],
                "interpolation": self.input.interpolation,
                "crop_pct": self.input.crop_pct,
                "crop_mode": self.input.crop_mode,
                "mean": list(self.input.mean),
                "std": list(self.input.std),
            },
        }
        timm.models.save_for_hf(
            self.network.cpu().eval(),
            str(out),
            model_config=config,
            model_args={"img_size": size} if self._is_resized else None,
            safe_serialization=True,
        )


class TextClassifier(nn.Module):
    """A transformers encoder with a fresh classification head for these classes."""

    def __init__(
        self, name: str, class_names: Sequence[str], *, pretrained: bool, max_length: int | None = None
    ) -> None:
        """`name` is a folder or ORG/NAME[@REVISION]. Raises TeacherError."""
        super().__init__()
        folder = open_folder(name)
        self.input = TransformersText(folder, max_length=max_length, pool="mean").input
        labels = {"num_labels": len(class_names), "id2label": dict(enumerate(class_names))}
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **labels)
        kind = transformers.AutoModelForSequenceClassification
        options = {"config": config, "local_files_only": True, "use_safetensors": True}
        network = kind.from_pretrained(folder, **options) if pretrained else kind.from_config(config)
        self.network = network.float()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"ids", "mask": (batch, tokens)} -> {"labels": float32 (batch, classes)}."""
        output = self.network(input_ids=inputs["ids"], attention_mask=inputs["mask"].long())
        return {"labels": output.logits.float()}

    def save(self, out: Path) -> None:
        """A transformers folder, with its tokenizer and length limit."""
        self.network.cpu().eval().save_pretrained(out)
        (out / "tokenizer.json").write_text(self.input.tokenizer_json, encoding="utf-8")
        length = {"max_seq_length": self.input.max_length}
        (out / "sentence_bert_config.json").write_text(json.dumps(length), encoding="utf-8")
