"""The command line as a user has it: another process, in a folder that is no checkout."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["featurecache"]

_PROGRAM = Path(sys.executable).parent / "featurecache"


def featurecache(line: str, *, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run `featurecache LINE`, with nothing in the environment but PATH and `env`; its stdout. Fails where it fails."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), **(env or {})}
    done = subprocess.run(
        [sys.executable, _PROGRAM, *line.split()], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"featurecache {line}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout
