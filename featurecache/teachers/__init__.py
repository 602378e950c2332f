"""Teachers: frozen networks that are run once; importing this imports no network library."""

from featurecache.registry import Registry
from featurecache.teachers.base import Teacher
from featurecache.teachers.resolve import SHORT_NAMES, load_teacher, resolve_name

__all__ = ["SHORT_NAMES", "TEACHERS", "Teacher", "load_teacher", "resolve_name"]

TEACHERS = Registry[Teacher](
    "teacher",
    timm="featurecache.teachers.timm_model:TimmTeacher",
    transformers_text="featurecache.teachers.transformers_text:TransformersText",
    transformers_vision="featurecache.teachers.transformers_vision:TransformersVision",
    torch="featurecache.teachers.torch_callable:TorchTeacher",
    random="featurecache.teachers.random_projection:RandomProjection",
)
