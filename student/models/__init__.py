"""Students: backbones of timm and transformers, and the heads upon them."""

from student.models.base import Backbone
from student.models.build import DEFAULT_STUDENTS, STUDENTS, backbone_from_json, build_backbone
from student.models.student import Student

__all__ = ["DEFAULT_STUDENTS", "STUDENTS", "Backbone", "Student", "backbone_from_json", "build_backbone"]
