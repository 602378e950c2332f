"""Stages of a benchmark: each is a command of the project, printed before it runs and never run twice."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run", "scores_of", "spread", "summarise"]

FEATURECACHE = [sys.executable, "-c", "from pipelines.cli import main; main()"]


def run(*arguments: str, out: Path) -> None:
    """One command of the project, unless what it leaves behind stands already."""
    if not out.exists():
        print("featurecache", *arguments, flush=True)
        subprocess.run([*FEATURECACHE, *arguments], check=True, stdout=subprocess.DEVNULL)


def scores_of(run_directory: Path, cache: Path) -> dict[str, float]:
    """`evaluate --json` of a run on the test part, kept beside it."""
    kept = run_directory / "test.json"
    if not kept.exists():
        command = [*FEATURECACHE, "evaluate", str(run_directory), "--cache", str(cache), "--split", "test", "--json"]
        kept.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    scores: dict[str, float] = json.loads(kept.read_text())
    return scores


def summarise(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def spread(values: Sequence[float]) -> str:
    """Each seed's value."""
    return ", ".join(f"{value:.1f}" for value in values)
