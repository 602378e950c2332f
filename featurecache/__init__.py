"""Teacher outputs, computed once and kept on disk."""

import importlib
from typing import Any

# imported when first used: `import featurecache` stays quick and does not import torch
_PUBLIC = {
    "CacheReader": "featurecache.store.reader",
    "FeatureCacheError": "featurecache.errors",
    "load_teacher": "featurecache.teachers",
    "open_cache": "featurecache.store.reader",
    "open_data": "featurecache.sources",
}

__version__ = "0.1.0"
__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
