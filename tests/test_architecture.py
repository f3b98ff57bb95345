"""The house rules, held by ast: layers, sizes, light imports, documented and annotated public functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tinyhat"
LAYERS = {
    "errors": 0, "verb": 0, "types": 0, "run": 0, "decision": 0, "config": 0, "__init__": 0,
    "data": 1, "tune": 1, "evaluate": 1, "report": 1,
    "encoder": 2, "head": 3, "train": 4, "embed": 4,
    "compress": 5, "serve": 5, "scale": 5, "conclude": 5, "verbs": 5, "pipeline": 5, "predict": 5, "demo": 5,
    "pretrain": 5, "sweep": 5, "arena": 5, "arena_arm": 5, "arena_table": 5,
    "estimator": 5, "models": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip
ORDER = ["errors", "types", "config", "run", "decision", "data", "tune", "evaluate", "report"]  # within L0 and L1
HEAVY = {"torch", "transformers", "accelerate", "peft", "datasets"}
FILES = sorted(SOURCE.rglob("*.py"))
# a saved LTG-BERT carries these modules into a folder of their own: they import one another by relative imports, and
# nothing of tinyhat, so that the folder loads where there is no tinyhat
CARRIED = sorted((SOURCE / "encoder" / "ltg_bert").glob("*_ltg_bert.py"))
CODE = [
    *FILES,
    *(path for room in ("benchmarks", "examples", "experiments") for path in sorted((ROOT / room).rglob("*.py"))),
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                assert path in CARRIED, "imports are absolute"
                assert node.level == 1, "carried modules lie side by side"
                module = ".".join(["tinyhat", *path.relative_to(SOURCE).parent.parts, module])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path):
    here = room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "tinyhat" and rest and rest[0] in LAYERS:
            assert LAYERS[rest[0]] <= LAYERS[here], f"{here} may not import {name}"
            if here in ORDER and rest[0] in ORDER:
                assert ORDER.index(rest[0]) <= ORDER.index(here), f"{here} may not import {name}"
        if LAYERS[here] <= 1 and here != "__init__":
            # data may read a hub data set; nothing below L2 computes with torch
            assert top not in HEAVY - ({"datasets"} if here == "data" else set()), f"{here} may not import {name}"


def test_what_a_saved_model_carries_needs_no_tinyhat():
    assert len(CARRIED) > 2
    beside = {f"tinyhat.encoder.ltg_bert.{path.stem}" for path in CARRIED}
    for path in CARRIED:
        for name in imports(path):
            top = name.split(".")[0]
            assert top in {"torch", "transformers", "huggingface_hub"} or top in sys.stdlib_module_names or any(
                name.startswith(module) for module in beside
            ), f"{path.name} imports {name}"  # fmt: skip
            if top == "tinyhat":
                assert f"from .{name.split('.')[3]} import" in path.read_text(), (
                    "by a relative import, or it is not carried"
                )


def test_no_cycles_between_modules():
    graph = {}
    for path in FILES:
        name = ".".join(["tinyhat", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = {m for m in imports(path) if m.startswith("tinyhat.") and m != name}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        for other in graph.pop(name, ()) if name in graph else ():
            visit(other, (*trail, name))

    for name in list(graph):
        visit(name, ())


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 100, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_functions_are_annotated_and_documented(path: Path):
    tree = ast.parse(path.read_text())
    assert len(ast.get_docstring(tree) or "") > 3, "a module says what it is for"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for owner in [tree, *classes]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has no docstring"
                if any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                    continue  # Triton reads annotations as types of its own
                arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
                assert node.returns is not None, node.name
                assert all(a.annotation for a in arguments), node.name


def test_importing_tinyhat_and_its_help_stay_light():
    code = "import sys, tinyhat; assert not {'torch', 'transformers', 'sklearn', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; from tinyhat.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'sklearn', 'pyarrow', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_project_names_no_machine():
    tracked = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".md", ".toml", ".yaml"} and ".venv" not in p.parts]
    for path in tracked:
        assert "/work/" not in path.read_text(encoding="utf-8") or path == Path(__file__), path
