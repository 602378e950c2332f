"""How long hostile caches take to be refused, and in how much memory: `python -m benchmarks.attacks`.

A line for each attack, and as the last line one JSON object.
"""

import json
import tempfile
from pathlib import Path

from tests.attacks.all_attacks import try_all


def main() -> None:
    """Run them all."""
    print(f"{'family':<18} {'attack':<62} {'refused by':<24} {'reader s':>8} {'verify s':>8} {'peak MiB':>8}")
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        for facts in try_all(Path(folder)):
            tried.append(facts)
            by = " and ".join(name for name in (facts["refused"] and "reader", facts["findings"] and "verify") if name)
            times = f"{facts['reader_seconds']:>8.3f} {facts['verify_seconds']:>8.3f} {facts['peak_mib']:>8.1f}"
            print(f"{facts['family']:<18} {facts['attack'][:62]:<62} {by:<24} {times}")
    summary = {
        "attacks": len(tried),
        "refused_by_reader": sum(bool(facts["refused"]) for facts in tried),
        "told_by_verify": sum(facts["findings"] > 0 for facts in tried),
        "slowest_reader_seconds": max(facts["reader_seconds"] for facts in tried),
        "slowest_verify_seconds": max(facts["verify_seconds"] for facts in tried),
        "peak_mib": tried[-1]["peak_mib"],
        "forbidden_events": tried[-1]["seen"],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
