"""Teachers: frozen networks that are run once; importing this imports no network library."""

from featurecache.teachers.base import Teacher
from featurecache.teachers.resolve import SHORT_NAMES, TEACHERS, load_teacher, resolve_name

__all__ = ["SHORT_NAMES", "TEACHERS", "Teacher", "load_teacher", "resolve_name"]
