"""The three rules of docs/architecture.md: who may import whom, what is imported when, and no circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("featurecache", "student", "pipelines")
FLOORS = [
    ["featurecache.types", "featurecache.errors", "featurecache.fingerprint"],
    ["featurecache.registry", "featurecache.transfer"],
    [
        "featurecache.augment",
        "featurecache.inputs",
        "featurecache.layers",
        "featurecache.sources",
        "featurecache.records",
        "featurecache.teachers",
        "featurecache.encodings",
    ],
    ["featurecache.frames", "featurecache.loader", "featurecache.masking", "featurecache.store"],
    [
        "featurecache.rows",
        "featurecache.draw",
        "featurecache.forward",
        "featurecache.plan",
        "featurecache.measure",
        "featurecache.background",
        "featurecache.extract",
        "featurecache.store_inputs",
    ],
    ["student"],
    ["pipelines"],
    ["pipelines.cli"],
]
STUDENT_MAY = {
    "types",
    "errors",
    "fingerprint",
    "registry",
    "augment",
    "inputs",
    "layers",
    "sources",
    "encodings",
    "frames",
    "loader",
    "masking",
    "store.held",
    "store.reader",
    "store.stored_inputs",
    "transfer",
}


def module_name(path: Path) -> str:
    """`featurecache/store/__init__.py` -> "featurecache.store"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imports_of(module: str, *, at_start_only: bool = False) -> set[str]:
    """Modules of ours that a module imports anywhere in its text (or only when it is itself imported)."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if not at_start_only else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import name` does not
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys() or {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def floor_of(module: str) -> int:
    """The floor of the longest entry that a module is below."""
    best = max(
        ((len(entry), number) for number, floor in enumerate(FLOORS) for entry in floor if is_below(module, entry)),
        default=(0, -1),
    )
    return best[1]


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    if module == "featurecache":
        pytest.skip("the public face, which names all floors and imports nothing until asked")
    assert floor_of(module) >= 0, f"{module} is on no floor"
    for imported in imports_of(module):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}, which is above it"


def test_there_are_no_circles() -> None:
    graph = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        # a package's own __init__ imports its modules, which is no circle of theirs
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for imported in sorted(graph[module]):
            visit(imported, (*path, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_student_never_meets_the_teacher() -> None:
    for module in MODULES:
        if not is_below(module, "student"):
            continue
        for imported in imports_of(module):
            if not is_below(imported, "student"):
                inner = imported.removeprefix("featurecache.")
                allowed = any(is_below(inner, name) for name in STUDENT_MAY)
                assert allowed, f"{module} imports {imported}"


def test_no_teacher_module_is_loaded_by_training() -> None:
    """What training imports when it runs, transitively: neither teachers nor extraction."""
    code = "import sys, student.trainer, student.evaluate, student.export, pipelines.build; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith(("featurecache.teachers", "featurecache.extract"))]


def test_only_the_command_line_prints() -> None:
    for module, path in MODULES.items():
        if module == "pipelines.cli.console":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        called = [node.func for node in nodes if isinstance(node, ast.Call)]
        assert "print" not in {function.id for function in called if isinstance(function, ast.Name)}, module
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        outer = {name.split(".")[0] for name in imported} & {"typer", "rich", "click"}
        assert is_below(module, "pipelines.cli") or not outer, f"{module} imports {outer}"


@pytest.mark.parametrize("forbidden", ["pickle", "dill", "marshal", "shelve", "joblib"])
def test_nothing_unpickles(forbidden: str) -> None:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert forbidden not in {alias.name for alias in node.names}, module
            if isinstance(node, ast.ImportFrom):
                assert node.module != forbidden, module
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "np", "numpy"), f"{module} calls {node.value.id}.load"


def test_every_module_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, f"{module} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_torch(package: str) -> None:
    code = f"import sys, {package}; print(*[name for name in ('torch', 'timm', 'zarr') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
