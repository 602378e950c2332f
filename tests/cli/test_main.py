"""Starting the program: quickly, without what only some commands need."""

import subprocess
import sys
import time

import pytest

HELP = """
import sys
sys.argv = ["featurecache", *{arguments}]
from pipelines.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""
HEAVY = ("torch", "torchvision", "timm", "transformers", "tokenizers", "webdataset", "zarr", "PIL", "rich", "scipy")


def loaded_after(code):
    """Top-level packages in a fresh interpreter that has run this."""
    code += "\nprint('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"], ["shell-init"]])
def test_help_loads_nothing_heavy(arguments):
    assert not loaded_after(HELP.format(arguments=arguments)) & set(HEAVY)


@pytest.mark.parametrize("package", ["featurecache", "pipelines", "student"])
def test_packages_do_not_import_torch(package):
    assert not loaded_after(f"import {package}") & {"torch", "timm", "transformers", "zarr"}


def test_help_answers_within_half_a_second():
    def seconds():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", HELP.format(arguments=["--help"])], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(6)) < 0.5


def test_version(run):
    from featurecache import __version__

    assert run("--version").out == f"featurecache {__version__}\n"


def test_nothing_asked_shows_the_commands(run):
    result = run()
    assert result.code == 2 and "train-student" in result.err and not result.out


def test_short_help(run):
    assert run("info", "-h").out == run("info", "--help").out


def test_closed_pipe_is_no_error(cache):
    code = HELP.format(arguments=["info", str(cache)])
    pipe = 'set -o pipefail; "$0" -c "$1" | true'
    done = subprocess.run(["bash", "-c", pipe, sys.executable, code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
