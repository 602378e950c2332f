"""A filled hub cache for tests: the files that huggingface_hub would have downloaded, with random weights."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

__all__ = ["COMMIT", "write_hub_cache"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_hub_cache(cache: Path, model: str = "vit_base_patch16_224", *, seed: int = 0, commit: str = COMMIT) -> Path:
    """Put random weights of a timm model under its hub name into `cache` (HF_HUB_CACHE, or HF_HOME/hub); their path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(model)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()  # timm starts classifiers at zero, which would make all logits equal
    repository = cache / f"models--{timm.get_pretrained_cfg(model).hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    return snapshot / "model.safetensors"
