"""Where a batch's targets come from: a cache's files or the device's memory, one teacher or several."""

from student.targets.balanced import Balanced
from student.targets.base import Targets, Values
from student.targets.ensemble import Ensemble
from student.targets.from_cache import FromCache
from student.targets.residency import Residency, place, place_inputs
from student.targets.together import Member, Together

__all__ = [
    "Balanced",
    "Ensemble",
    "FromCache",
    "Member",
    "Residency",
    "Targets",
    "Together",
    "Values",
    "place",
    "place_inputs",
]
