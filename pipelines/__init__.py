"""Whole runs: a teacher and data in, a cache out; a cache in, a student and its report out."""

import importlib
from typing import Any

# imported when first used, so that `fc --help` waits for nothing
_PUBLIC = {
    "describe_cache": "pipelines.describe",
    "describe_progress": "pipelines.describe",
    "evaluate_run": "pipelines.evaluate",
    "export_run": "pipelines.export",
    "extend_cache": "pipelines.extend",
    "extract_cache": "pipelines.extract",
    "finish": "pipelines.events",
    "fit_probe": "pipelines.probe",
    "fit_teacher": "pipelines.fit",
    "import_probabilities": "pipelines.imports",
    "pretrain_student": "pipelines.pretrain",
    "run_recipe": "pipelines.recipes.run",
    "show_views": "pipelines.views",
    "train_student": "pipelines.train",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
