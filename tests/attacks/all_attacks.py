"""Every attack of every family, each tried by one lean process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attacks import (
    test_assets,
    test_json,
    test_links,
    test_parts,
    test_records_and_seals,
    test_views_and_inputs,
    test_zarr_metadata,
)
from tests.attacks.hostile import Attack, write_good

FAMILIES = (
    test_zarr_metadata,
    test_links,
    test_json,
    test_parts,
    test_records_and_seals,
    test_assets,
    test_views_and_inputs,
)
ATTACKS: list[tuple[str, Attack]] = [
    (family.__name__.rpartition("test_")[2], attack) for family in FAMILIES for attack in family.ATTACKS
]


def try_all(folder: Path) -> Iterator[dict[str, Any]]:
    """What `reading.tried` says of each, with family, attack, and whether a reader may get by."""
    good = folder / "good"
    write_good(good)
    command = [sys.executable, "-m", "tests.attacks.reading"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin and process.stdout
        process.stdin.write(f"{good}\n")
        for number, (family, attack) in enumerate(ATTACKS):
            root = folder / str(number) / "cache"
            shutil.copytree(good, root)
            attack.build(root)
            process.stdin.write(f"{root}\n")
            facts = json.loads(process.stdout.readline())
            yield {"family": family, "attack": attack.name, "may_read": attack.is_read, **facts}
            shutil.rmtree(root.parent)
        process.stdin.close()
