"""Trained layers out of packages that others publish: imported, exported, the same answers.

The packages are fetched for the test and not installed; nothing in them is run.
"""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.export.built import need, run
from throughtime import Recurrent, cells
from throughtime.export import from_keras, from_onnx, from_safetensors, to_c, to_onnx
from throughtime.export.operators import Reversed

onnx = pytest.importorskip("onnx", reason="no onnx here; pip install 'throughtime[export]'")
pytest.importorskip("safetensors", reason="no safetensors; pip install 'throughtime[train]'")
runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install onnxruntime")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the files of a package, by name and version, as bytes by their path in it."""
    folder = tmp_path_factory.mktemp("packages")

    def fetch(name: str) -> dict[str, bytes]:
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, name]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{name} cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
        start = name.partition("=")[0].replace("-", "_")
        (path,) = (p for p in folder.iterdir() if p.name.lower().startswith(start))
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as held:
                return {n: held.read(n) for n in held.namelist()}
        with tarfile.open(path) as tar:
            parts = ((m.name, tar.extractfile(m)) for m in tar.getmembers() if m.isfile())
            return {n: part.read() for n, part in parts if part is not None}

    return fetch


def near(found: Any, wanted: Any) -> None:
    a, b = (v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for v in (found, wanted))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(b).max())


def answers_of_node(file: Path, name: str, x: Any) -> Any:
    """What onnxruntime says of the recurrent operator of a file: (T, D, B, H)."""
    from throughtime.export.onnx.read import find_recurrent, load_onnx, read_node

    nodes = find_recurrent(load_onnx(file).graph, {})
    node, constants = next((n, c) for n, c in nodes if n.name == name)
    weights = read_node(name, node, constants, file.stat().st_size).weights
    keys = [k for k in ("W", "R", "B") if k in weights]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    one = onnx.helper.make_node(node.op_type, ["x", *keys], ["y"], **attributes)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [one], "one", [value("x", 1, x.shape)], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(weights[k], k) for k in keys],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    session = runtime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def by_c(layer: nn.Module, x: Any, folder: Path) -> Any:
    """(T, I) through the C that a layer becomes, step by step."""
    to_c(layer, folder)
    run([need("gcc", "gcc"), "-O3", "-shared", "-fPIC", "net.c", "-o", "net.so", "-lm"], folder)
    library = ctypes.CDLL(str(folder / "net.so"))
    inner: Any = layer
    H, x = inner.hidden_sizes[0], np.ascontiguousarray(x)
    state, y = np.zeros(2 * H * len(inner.widths), np.float32), np.zeros((len(x), H), np.float32)
    library.net_reset(ctypes.c_void_p(state.ctypes.data))
    places = [ctypes.c_void_p(v.ctypes.data) for v in (state, x, y)]
    library.net_run(*places, ctypes.c_size_t(len(x)))
    return y


def one_way(layer: Any, d: int) -> Recurrent:
    """One direction of a layer, alone."""
    found = Recurrent(layer.cell, layer.input_size, layer.hidden_sizes[0])
    with torch.no_grad():
        for name, v in layer.weights(0, d).items():
            found.weights(0, 0)[name].copy_(v)
    return found


def check(layer: Any, wanted: Any, x: Any, folder: Path) -> None:
    """Ours, our ONNX and our C against (T, D, B, H), by x (T, B, I)."""
    assert not isinstance(layer, Reversed)
    D, H = wanted.shape[1], wanted.shape[-1]
    sides = wanted.transpose(0, 2, 1, 3).reshape(*x.shape[:2], D * H)
    given = torch.from_numpy(x)
    rows = given.transpose(0, 1) if layer.batch_first else given
    near(layer(rows)[0].transpose(0, 1) if layer.batch_first else layer(given)[0], sides)
    folder.mkdir(exist_ok=True)
    session = runtime.InferenceSession(str(to_onnx(layer, folder / "net.onnx")))
    y = session.run(None, {"x": rows.numpy()})[0]
    near(y.transpose(1, 0, 2) if layer.batch_first else y, sides)
    for d in range(D):
        row = x[::-1, 0] if d else x[:, 0]
        y = by_c(one_way(layer, d), row, folder / f"c{d}")
        near(y[::-1] if d else y, wanted[:, d, 0])


def inputs(T: int, B: int, width: int) -> Any:
    return np.random.default_rng(0).normal(size=(T, B, width)).astype(np.float32)


ONNX = {
    "silero-vad==6.2.3": ("silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_half.onnx",
                          "silero_vad_16k_sequence.onnx", "silero_vad_openvino_16k.onnx"),
    "ddddocr==1.6.1": ("common.onnx",),
}  # fmt: skip


@pytest.mark.parametrize("package", ONNX)
def test_operators_of_files_of_onnx(package: str, packages: Any, tmp_path: Path) -> None:
    held = packages(package)
    for file in ONNX[package]:
        content = next(v for n, v in held.items() if n.rpartition("/")[2] == file)
        (tmp_path / file).write_bytes(content)
        layers = from_onnx(tmp_path / file)
        assert layers
        for k, (name, layer) in enumerate(layers.items()):
            x = inputs(40, 2, layer.input_size)  # type: ignore[arg-type]
            wanted = answers_of_node(tmp_path / file, name, x)
            check(layer, wanted, x, tmp_path / f"{file}.{k}")


def test_a_cell_of_safetensors(packages: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "net.safetensors"
    held = packages("silero-vad==6.2.3")
    file.write_bytes(held["silero_vad/data/silero_vad_16k.safetensors"])
    (layer,) = from_safetensors(file).values()
    cell = nn.LSTMCell(128, 128)
    names = {n: f"lstm_cell.{n}" for n in cell.state_dict()}
    cell.load_state_dict({n: load_file(file)[theirs] for n, theirs in names.items()})
    x, state, found = torch.from_numpy(inputs(40, 2, 128)), None, []
    for one in x:
        state = cell(one, state)
        found.append(state[0])
    check(layer, torch.stack(found).detach().numpy()[:, None], x.numpy(), tmp_path)


def _gru(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """g2p-en's own equations, as its code has them: (B, T, I) to (B, T, H)."""
    h, found = np.zeros((len(x), w_hh.shape[1]), np.float32), []
    for t in range(x.shape[1]):
        a, u = x[:, t] @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        H = h.shape[1]
        r, z = (1 / (1 + np.exp(-(a[:, k : k + H] + u[:, k : k + H]))) for k in (0, H))
        h = (1 - z) * np.tanh(a[:, 2 * H :] + r * u[:, 2 * H :]) + z * h
        found.append(h)
    return np.stack(found, 1)


@pytest.mark.parametrize("side", ["enc", "dec"])
def test_the_speller_of_g2p_en(side: str, packages: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    held = np.load(io.BytesIO(packages("g2p-en==2.1.0")["g2p_en/checkpoint20.npz"]))
    names = {f"{w}_{m}": f"{w[0]}_{m}" for w in ("weight", "bias") for m in ("ih", "hh")}
    weights = {f"{theirs}_l0": held[f"{side}_{ours}"] for theirs, ours in names.items()}
    save_file(weights, tmp_path / "net.safetensors")
    (layer,) = from_safetensors(tmp_path / "net.safetensors").values()
    table = held[f"{side}_emb"]
    x = table[np.random.default_rng(0).integers(len(table), size=(3, 30))]
    y = _gru(x, *(held[f"{side}_{n}"] for n in names.values()))
    check(layer, y.transpose(1, 0, 2)[:, None], np.ascontiguousarray(x.transpose(1, 0, 2)),
          tmp_path)  # fmt: skip


def _lstm(x: Any, kernel: Any, recurrent: Any, bias: Any) -> Any:
    """Keras's equations: (B, T, I) to (B, T, H)."""
    H = len(recurrent)
    h = c = np.zeros((len(x), H), np.float32)
    found = []
    for t in range(x.shape[1]):
        a = x[:, t] @ kernel + h @ recurrent + bias
        i, f, o = (1 / (1 + np.exp(-a[:, k * H :][:, :H])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[:, 2 * H : 3 * H])
        h = o * np.tanh(c)
        found.append(h)
    return np.stack(found, 1)


@pytest.mark.parametrize("size", [50, 100, 150, 200, 300])
def test_the_words_of_chars2vec(size: int, packages: Any, tmp_path: Path) -> None:
    """Files of Keras 2 with weights alone; what its code builds of them are plain LSTMs."""
    h5py = pytest.importorskip("h5py", reason="no h5py here; pip install 'throughtime[export]'")
    ending = f"trained_models/eng_{size}/weights.h5"
    held = packages("chars2vec==0.1.7")
    (tmp_path / "net.h5").write_bytes(next(v for n, v in held.items() if n.endswith(ending)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = from_keras(tmp_path / "net.h5")
    assert [repr(layer.cell) for layer in layers.values()] == [repr(cells.LSTM())] * 2
    with h5py.File(tmp_path / "net.h5") as file:
        for k, (name, layer) in enumerate(layers.items()):
            group = file[f"{name}/{name}"]
            weights = [group[f"{n}:0"][()] for n in ("kernel", "recurrent_kernel", "bias")]
            x = inputs(25, 2, len(weights[0]))
            y = _lstm(x.transpose(1, 0, 2), *weights)
            check(layer, y.transpose(1, 0, 2)[:, None], x, tmp_path / f"{k}")
