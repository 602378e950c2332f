"""Objectives: what a student is trained towards, by name. `weighted.make_objective` makes them from text."""

from featurecache.registry import Registry
from student.objectives.base import Batch, Dimensions, Objective

__all__ = ["OBJECTIVES", "Batch", "Dimensions", "Objective"]

OBJECTIVES = Registry[Objective](
    "objective",
    ce="student.objectives.cross_entropy:CrossEntropy",
    kl="student.objectives.kl:KLDivergence",
    cosine="student.objectives.cosine:Cosine",
    mse="student.objectives.mse:MeanSquaredError",
    align_uniform="student.objectives.align_uniform:AlignUniform",
    infonce="student.objectives.infonce:InfoNCE",
    hidden="student.objectives.hidden:HiddenStates",
    attention="student.objectives.attention:AttentionScores",
    minilm="student.objectives.minilm:MiniLM",
)
