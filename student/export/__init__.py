"""A trained student on disk: as this project keeps it, and as other libraries load it."""

from featurecache.registry import Registry
from student.export.base import Exported, Exporter
from student.export.native import load_student, save_student

__all__ = ["EXPORTS", "Exported", "Exporter", "load_student", "save_student"]

EXPORTS = Registry[Exporter](
    "export",
    safetensors="student.export.native:export_native",
    timm="student.export.timm_folder:export_timm",
    transformers="student.export.transformers_folder:export_transformers",
    onnx="student.export.onnx_file:export_onnx",
)
