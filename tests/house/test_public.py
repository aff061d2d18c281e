"""The package as its users see it: names, docstrings, version, and what importing it costs."""

from __future__ import annotations
import __future__

import ast
import importlib.metadata
import operator
import re
import tomllib
import types
from collections.abc import Iterator

import pytest

import throughtime
from tests.house.source import ROOT, Module, fresh, modules, tracked

OPTIONAL = {
    "pytorch_lightning",
    "ray",
    "optuna",
    "lightning_fabric",
    "rich",
    "safetensors",
    "polars",
    "plotly",
    "llvmlite",
    "mnist1d",
    "sklearn",
    "matplotlib",
}


def visible(module: types.ModuleType) -> set[str]:
    """The public names of a module, its own submodules and `from __future__` aside."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, __future__._Feature)
        and not _is_submodule(module, value)
    }


def _is_submodule(module: types.ModuleType, value: object) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.startswith(f"{module.__name__}.")


def test_all_is_what_is_visible() -> None:
    listed = [name for name in throughtime.__all__ if not name.startswith("_")]
    submodules = {name for name in listed if _is_submodule(throughtime, getattr(throughtime, name))}
    assert set(listed) - submodules == visible(throughtime)
    assert len(set(listed)) == len(listed)


def test_a_name_left_lying_about_is_seen() -> None:
    module = types.ModuleType("house")
    module.__dict__.update(torch=pytest, part=types.ModuleType("house.part"), _own=1)
    assert visible(module) == {"torch"}


@pytest.mark.parametrize("name", throughtime.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(throughtime, name)
    if isinstance(value, type):
        assert vars(value).get("__doc__"), name
    elif isinstance(value, types.ModuleType) or callable(value):
        assert value.__doc__, name


def test_every_module_says_what_it_is() -> None:
    silent = [m.path for m in modules() if not ast.get_docstring(m.tree)]
    assert silent == []


def sentences(module: Module) -> Iterator[str]:
    """The texts of a module that hold a space: errors, advice, docstrings but its own."""
    for node in (n for part in module.tree.body[1:] for n in ast.walk(part)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def named_paths() -> set[str]:
    """Every dotted path into the package that a page or a sentence of the code names."""
    pages = [p.read_text("utf-8") for p in tracked() if p.suffix == ".md"]
    texts = [*pages, *(text for m in modules() for text in sentences(m))]
    return {path for text in texts for path in PATH.findall(text)}


PATH = re.compile(r"(?<![\w./])throughtime(?:\.[A-Za-z_]\w*)+")


def test_every_dotted_path_that_is_named_leads_somewhere() -> None:
    """In a process that has imported nothing else."""
    paths = sorted(named_paths())
    assert "throughtime.diagnosis.GradientFlow" in paths and len(paths) > 20
    code = (
        "import operator, throughtime\n"
        f"for path in {paths}:\n"
        "    operator.attrgetter(path.partition('.')[2])(throughtime)"
    )
    fresh(code)


def test_a_path_that_leads_nowhere_is_seen() -> None:
    (path,) = PATH.findall("call `throughtime.diagnose.flow`, of torch.ops.throughtime.scan.")
    assert path == "throughtime.diagnose.flow"
    with pytest.raises(AttributeError, match="function.* has no attribute 'flow'"):
        operator.attrgetter("diagnose.flow")(throughtime)
    with pytest.raises(AttributeError, match="'throughtime.diagnosis' has no attribute 'flaw'"):
        operator.attrgetter("diagnosis.flaw")(throughtime)


def test_version_stands_in_one_place() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    literal = re.compile(rf"(?<![\d.]){re.escape(throughtime.__version__)}(?![\d.])")
    assert "version" in declared["dynamic"]
    assert [m.path for m in modules() if literal.search(m.text)] == ["environment.py"]
    assert importlib.metadata.version("throughtime") == throughtime.__version__


def test_import_leaves_optional_packages_alone() -> None:
    loaded = fresh("import sys, throughtime; print(*{n.partition('.')[0] for n in sys.modules})")
    assert not OPTIONAL & set(loaded.split())


def import_cost(imported: str) -> float:
    """Seconds of the processor that an import takes in a process that has torch, once compiled."""
    code = (
        f"import time, torch; begun = time.process_time(); import {imported}; "
        f"print(time.process_time() - begun)"
    )
    return float(fresh(code))


def test_import_costs_at_most_a_fifth_of_a_second_over_torch() -> None:
    # Of several processes the cheapest counts: what else runs can only make one dearer.
    assert any(import_cost("throughtime") <= 0.2 for _ in range(5))


def test_an_import_of_the_compile_stack_would_be_seen() -> None:
    assert import_cost("throughtime, torch._dynamo") > 0.2
