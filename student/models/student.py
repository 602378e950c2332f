"""A student: a backbone, and one linear head for each output that it must match."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featurecache.errors import UsageError
from student.models.base import Backbone, Layered

__all__ = ["Student"]


class Student(nn.Module):
    """One batch of inputs -> {"features": (batch, features), head: (batch, width), ...}, all float32."""

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, int],
        *,
        shared: Mapping[str, str] | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        """`heads` has the width of each head: {"logits": classes, "embedding": the teacher's width, ...}.

        `shared` gives a head's output a second name: {"labels": "logits"} lets one classifier learn from both. `layers`
        are what training looks at of a layered backbone; they are no part of what is saved.
        """
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        if isinstance(backbone, Layered):
            backbone.keep(self.layers)
        elif layers:
            raise UsageError(f"the student {backbone.name} does not give {', '.join(layers)}")
        self.shared = dict(shared or {})
        self.heads = nn.ModuleDict({name: nn.Linear(backbone.features, width) for name, width in heads.items()})

    @property
    def widths(self) -> dict[str, int]:
        """The width of each head."""
        return {name: head.out_features for name, head in self.heads.items() if isinstance(head, nn.Linear)}

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pooled features, what each head makes of them, and each layer asked for, (batch, tokens, width)."""
        features = self.backbone(inputs).float()
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would leave logits three digits
            outputs = {"features": features, **{name: head(features) for name, head in self.heads.items()}}
        if self.layers and isinstance(self.backbone, Layered):
            kept = self.backbone.kept()
            outputs |= {name: kept[name].float() for name in self.layers}
        return outputs | {name: outputs[head] for name, head in self.shared.items()}
