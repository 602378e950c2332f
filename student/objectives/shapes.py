"""Tensors with their axes named: checked while the tests run, plain tensors otherwise."""

from torch import Tensor

try:
    from jaxtyping import Bool, Float, Int
except ImportError:  # a development tool: whoever only trains students need not have it
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int

__all__ = ["Labels", "Logits", "Mask", "Pairs", "Rows", "Scalar", "Tokens", "Vectors"]

Scalar = Float[Tensor, ""]
Vectors = Float[Tensor, "batch dim"]
Logits = Float[Tensor, "batch classes"]
Rows = Float[Tensor, "batch"]
Labels = Int[Tensor, "batch"]
Pairs = Bool[Tensor, "batch batch"]
Tokens = Float[Tensor, "batch tokens _"]
"""A vector for each token; the widths of student and teacher may differ."""
Mask = Bool[Tensor, "batch tokens"]
