"""All attacks on one process that reads nothing else: its memory, and what it is seen doing."""

from tests.attacks.all_attacks import ATTACKS, try_all


def test_one_process_that_meets_them_all(tmp_path):
    tried = list(try_all(tmp_path))
    assert len(tried) == len(ATTACKS) > 200
    assert [facts["attack"] for facts in tried if not facts["findings"]] == []
    assert tried[-1]["peak_mib"] < 300
    assert tried[-1]["seen"] == [] and tried[-1]["loaded"] == []


def test_the_watch_sees_what_it_should(good, tmp_path):
    """The same process, with one call in it that reading a cache never makes."""
    import subprocess
    import sys

    code = (
        "import os, sys, io, tests.attacks.reading as reading\n"
        f"sys.stdin = io.StringIO('{good}\\n{good}\\n')\n"
        "tried = reading.tried\n"
        "reading.tried = lambda root: (os.system('true'), tried(root))[1]\n"
        "reading.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"seen": ["os.system"]' in done.stdout
