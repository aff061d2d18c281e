"""Imports run one way."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.house.source import ROOT, Module, imports, modules

# Who may import whom, one arrow each; an arrow of an arrow is an arrow too.
# `throughtime` is the package's own file with the public names: above the layers, below all that
# is built with them.
ARROWS = {
    "cli": {"train", "diagnosis", "export", "tasks"},
    "train": {"tasks", "layers"},
    "tasks": {"throughtime"},
    "diagnosis": {"layers", "compat"},
    "export": {"throughtime"},
    "throughtime": {"laws", "compat", "uclip", "environment"},
    "laws": {"layers"},
    "uclip": {"errors"},
    "compat": {"layers"},
    "layers": {"scan"},
    "scan": {"backends"},
    "backends": {"compiler"},
    "compiler": {"cells", "environment"},
    "cells": {"cell"},
    "cell": {"torch_private"},
    "torch_private": {"errors"},
    "environment": {"torch_private"},
    "errors": set(),
}


# What the package's own file shows beside its arrows. `train` and `tasks` import public names from
# that file, and that gives them no arrow to these.
SHOWN = {"diagnosis", "export", "train"}


def reach(layer: str) -> set[str]:
    """Every layer that `layer` may import, itself among them."""
    found = {layer}
    for below in ARROWS[layer]:
        found |= reach(below)
    return found


def against_the_arrows(found: list[Module]) -> list[str]:
    """One line for each import that no arrow allows, and for each module without a layer."""
    lines = [
        f"{module.path}: no layer is called {module.layer}; draw its arrow in ARROWS"
        for module in found
        if module.layer not in ARROWS
    ]
    for module in found:
        allowed = reach(module.layer) if module.layer in ARROWS else set()
        if module.layer == "throughtime":
            allowed |= SHOWN
        for line, name in imports(module):
            target = _layer_of(name)
            if target and target not in allowed:
                lines.append(f"{module.path}:{line}: {module.layer} imports {target} ({name})")
    return lines


def _layer_of(name: str) -> str | None:
    """The layer an imported name belongs to; None when it is not ours."""
    parts = name.split(".")
    if parts[0] != "throughtime":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else "throughtime"


def test_imports_run_one_way() -> None:
    assert against_the_arrows(modules()) == []


def test_arrows_make_no_circle() -> None:
    for layer, below in ARROWS.items():
        assert all(layer not in reach(other) for other in below), layer


def test_contributing_draws_these_arrows() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn: dict[str, set[str]] = {}
    for line in re.findall(r"^    (\w+ -> .*)$", text, re.M):
        places = [re.findall(r"\w+", part.split("(")[0]) for part in line.split("->")]
        for (*_, source), targets in itertools.pairwise(places):
            drawn.setdefault(source, set()).update(targets)
    assert drawn == {source: set(targets) for source, targets in ARROWS.items() if targets}


def test_train_diagnosis_and_export_never_meet() -> None:
    apart = {"train", "diagnosis", "export"}
    assert all(reach(layer) & apart == {layer} for layer in apart)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("cells/lstm.py", "from throughtime.layers import Recurrent", "cells imports layers"),
        ("cells/lstm.py", "from ..layers.recurrent import Recurrent", "cells imports layers"),
        ("cells/__init__.py", "from .. import scan", "cells imports scan"),
        ("train/loop.py", "import throughtime.diagnosis.norms as n", "train imports diagnosis"),
        ("export/onnx.py", "def f():\n    from throughtime import train", "export imports train"),
        ("layers/stream/__init__.py", "from throughtime import LSTM", "layers imports throughtime"),
        ("scan.py", "if TYPE_CHECKING:\n    from .layers import x", "scan imports layers"),
        ("errors.py", "import_module('throughtime.cells')", "errors imports cells"),
        ("utils/__init__.py", "", "no layer is called utils"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, path: str, text: str, expected: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    (line,) = against_the_arrows(modules(tmp_path))
    assert expected in line


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cells/lstm.py", "import torch\nfrom throughtime.errors import CellError"),
        ("layers/dropin.py", "from ..cells import LSTM\nfrom .recurrent import Recurrent"),
        ("tasks/pronounce.py", "from throughtime import LSTM, cells"),
        ("cli/__init__.py", "from throughtime.train.loop import fit"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, path: str, text: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert against_the_arrows(modules(tmp_path)) == []
