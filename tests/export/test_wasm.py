"""WebAssembly from every cell: in node, in wasmtime, and a page that holds itself."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.export.built import TABLE, need, random_layer, run
from tests.export.test_c import MODELS, chaotic_layer
from throughtime import LSTM, Cell, Readout, cells
from throughtime.errors import BackendError
from throughtime.export import to_object
from throughtime.export.folder import fill_template
from throughtime.export.llvm.object_files import list_undefined
from throughtime.export.pieces import prepare


def node(folder: Path) -> str:
    return run([need("node", "nodejs"), folder / "net_test.mjs"])


@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_every_cell_passes_in_node(cell: Cell, tmp_path: Path) -> None:
    to_object(random_layer(cell, 11), tmp_path, target="wasm32")
    said = node(tmp_path)
    assert said.startswith("PASS") and "steps 1000" in said


def test_a_chaotic_net_in_node(tmp_path: Path) -> None:
    to_object(chaotic_layer(cells.Elman()), tmp_path, target="wasm32")
    assert node(tmp_path).startswith("PASS")


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_plain_stacks_in_node(name: str, weights: str, tmp_path: Path) -> None:
    for block in (1, 5):
        to_object(MODELS[name](), tmp_path, target="wasm32", weights=weights, block=block)
        assert node(tmp_path).startswith("PASS")


@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_in_wasmtime(cell: Cell, tmp_path: Path) -> None:
    if importlib.util.find_spec("wasmtime") is None:
        pytest.skip("there is no wasmtime here; pip install wasmtime")
    import wasmtime

    model = random_layer(cell, 11)
    done = to_object(model, tmp_path, target="wasm32")
    x, y, *_ = prepare(model, "net", "float32").record
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, (tmp_path / "net.wasm").read_bytes())
    assert list(module.imports) == []
    e = wasmtime.Instance(store, module, []).exports(store)
    memory: Any = e["memory"]
    memory.grow(store, 1)
    state = e["free"].value(store)
    at_x, at_y = state + done.state_bytes, state + done.state_bytes + 4 * x.shape[1]
    e["net_reset"](store, state)
    worst = 0.0
    for one, wanted in zip(x, y, strict=True):
        memory.write(store, one.tobytes(), at_x)
        e["net_step"](store, state, at_x, at_y)
        found = struct.unpack(f"<{len(wanted)}f", memory.read(store, at_y, at_y + 4 * len(wanted)))
        worst = max(worst, *(abs(a - b) for a, b in zip(found, wanted.tolist(), strict=True)))
    assert worst <= 2e-6 * float(abs(y).max())


def test_a_module_asks_nothing_of_its_host(tmp_path: Path) -> None:
    to_object(nn.Sequential(LSTM(2, 40, 2), Readout(40, 1)), tmp_path, target="wasm32")
    assert list_undefined((tmp_path / "net.o").read_bytes()) == set()


def test_the_loader_is_small() -> None:
    assert len(fill_template("loader.mjs", "net").encode()) <= 2000


def test_the_page_holds_the_module_and_needs_no_server(tmp_path: Path) -> None:
    to_object(nn.Sequential(LSTM(2, 5), Readout(5, 1)), tmp_path, target="wasm32", name="knob")
    page = (tmp_path / "knob.html").read_text()
    (inside,) = re.findall(r'atob\("([^"]*)"\)', page)
    assert base64.b64decode(inside) == (tmp_path / "knob.wasm").read_bytes()
    assert '["x[0]", "x[1]"]' in page
    assert not re.search(r"(src|href)=|import |https?:", page)


def test_a_name_that_the_template_has_too(tmp_path: Path) -> None:
    to_object(LSTM(2, 3), tmp_path, target="wasm32", name="WASM")
    page = (tmp_path / "WASM.html").read_text()
    assert "<title>WASM</title>" in page and "e.WASM_reset(state)" in page


def test_the_pages_script_steps_in_node(tmp_path: Path) -> None:
    """Its own script, on a page of plain objects."""
    to_object(nn.Sequential(LSTM(2, 5), Readout(5, 1)), tmp_path, target="wasm32")
    (script,) = re.findall(
        r'<script type="module">\n(.*)</script>', (tmp_path / "net.html").read_text(), re.S
    )
    (tmp_path / "page.mjs").write_text(f"{_DOM}\n{script}\n{_ASK}")
    said = run([need("node", "nodejs"), tmp_path / "page.mjs"])
    assert re.fullmatch(r"net: .*\n2 sliders, 1 meters, -?0\.\d{4}\n", said)


def test_the_page_steps_in_chromium(tmp_path: Path) -> None:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium to open the page in; apt-get install chromium")
    to_object(nn.Sequential(LSTM(2, 5), Readout(5, 1)), tmp_path, target="wasm32")
    said = run([found, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
                "--dump-dom", (tmp_path / "net.html").as_uri()])  # fmt: skip
    (steps,) = re.findall(r'data-steps="(\d+)"', said)
    assert int(steps) >= 5 and said.count("<meter") == 1 and re.search(r"<span>-?0\.\d{4}<", said)


_DOM = """
const made = [];
const element = (tag) => { const one = { tag, dataset: {}, children: [],
  append(...v) { one.children.push(...v); } }; made.push(one); return one; };
const places = {};
globalThis.document = { createElement: element, body: element("body"),
  getElementById: (id) => places[id] ??= element(id) };
"""
_ASK = """
const meters = made.filter((one) => one.tag === "meter");
console.log(places.about.textContent);
const sliders_made = made.filter((one) => one.type === "range").length;
console.log(`${sliders_made} sliders, ${meters.length} meters, ${shown[0].value.textContent}`);
process.exit(0);
"""


def test_sines_would_need_functions_of_the_host(tmp_path: Path) -> None:
    import torch

    model: Any = nn.Sequential(nn.Linear(1, 2), Readout(2, 2, activation=torch.sin))
    with pytest.raises(BackendError, match="wasm32 cannot compute this model by itself, it would"):
        to_object(model, tmp_path, target="wasm32")
