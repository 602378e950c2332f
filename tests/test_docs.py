"""What README.md and docs/extending.md show can be typed and run as it stands."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import typer.main

import pipelines
from featurecache.teachers import load_teacher
from pipelines.cli import app
from pipelines.cli.command import every_command
from student.objectives.base import Batch, Dimensions, Objective

ROOT = Path(__file__).parents[1]
COMMANDS = every_command(typer.main.get_command(app))


def blocks(file, language, containing):
    """The fenced blocks of a page in this language that contain a text."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if containing in block]


def six_lines():
    block, _ = blocks("README.md", "sh", "featurecache extract")
    return block.splitlines()


def commands(document):
    """Every command of the program in a document's blocks of shell lines."""
    lines = [
        line.partition("#")[0].strip()
        for block in blocks(document, "sh", "featurecache ")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("featurecache ")]


def test_readme_shows_six_lines():
    assert len(six_lines()) == 6


@pytest.mark.parametrize(
    "line", [line for page in ("README.md", "docs/views.md", "docs/teachers.md") for line in commands(page)]
)
def test_line_is_accepted(line):
    program, *words = shlex.split(line)
    assert program == "featurecache"
    name = " ".join(words[:2]) if words[0] == "import" else words[0]
    COMMANDS[name].make_context(
        name, words[len(name.split()) :]
    )  # refuses unknown options, missing ones and wrong values


def test_readme_python_parses_and_names_what_there_is():
    (block,) = blocks("README.md", "python", "from pipelines import")
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imports] == ["pipelines"]
    for alias in imports[0].names:
        assert callable(getattr(pipelines, alias.name))


def test_own_teacher_is_a_teacher(tmp_path, monkeypatch):
    (block,) = blocks("docs/extending.md", "python", "# mymodels.py")
    (tmp_path / "mymodels.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    (command,) = blocks("docs/extending.md", "sh", "torch:mymodels")
    words = shlex.split(command)
    teacher = load_teacher(words[words.index("--teacher") + 1])
    grey = torch.full((2, 3, 224, 224), 128, dtype=torch.uint8)
    embedding = teacher({"images": grey})["embedding"]
    assert embedding.shape == (2, 6)
    torch.testing.assert_close(embedding[:, 3:], torch.zeros(2, 3), rtol=0, atol=1e-5)
    monkeypatch.delitem(sys.modules, "mymodels")


def test_own_objective_is_log_cosh(tmp_path):
    (block,) = blocks("docs/extending.md", "python", "class LogCosh")
    (tmp_path / "log_cosh.py").write_text(block)
    log_cosh = runpy.run_path(str(tmp_path / "log_cosh.py"))["LogCosh"]
    objective = log_cosh(Dimensions(features=4, targets={"embedding": 3}))
    assert isinstance(objective, Objective)
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs={}, targets={"embedding": teacher}, labels=torch.zeros(5).long(), rows=torch.arange(5))
    apart = (student - teacher).double()
    expected = (apart.exp() + (-apart).exp()).div(2).log().mean()
    torch.testing.assert_close(objective({"embedding": student}, batch), expected.float())
