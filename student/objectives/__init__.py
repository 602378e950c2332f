"""Objectives: what a student is trained towards, by name. `weighted.make_objective` makes them from text."""

from featurecache.registry import Registry
from student.objectives.base import Batch, Dimensions, Objective

__all__ = ["OBJECTIVES", "Batch", "Dimensions", "Objective"]

OBJECTIVES = Registry[Objective](
    "objective",
    ce="student.objectives.cross_entropy:CrossEntropy",
    kl="student.objectives.kl:KLDivergence",
    dkd="student.objectives.dkd:DecoupledKD",
    dist="student.objectives.dist:DIST",
    cosine="student.objectives.cosine:Cosine",
    mse="student.objectives.mse:MeanSquaredError",
    align_uniform="student.objectives.align_uniform:AlignUniform",
    infonce="student.objectives.infonce:InfoNCE",
    smooth_l1="student.objectives.smooth_l1:SmoothL1",
    srrl="student.objectives.srrl:SRRL",
    rkd="student.objectives.rkd:RelationalDistillation",
    sp="student.objectives.sp:SimilarityPreserving",
    pkt="student.objectives.pkt:ProbabilisticTransfer",
    crd="student.objectives.crd:CRD",
    seed="student.objectives.seed:SEED",
    siglip="student.objectives.siglip:SigLIP",
    vicreg="student.objectives.vicreg:VICReg",
    hidden="student.objectives.hidden:HiddenStates",
    attention="student.objectives.attention:AttentionScores",
    minilm="student.objectives.minilm:MiniLM",
)
