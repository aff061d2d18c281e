"""Files of Keras, Flax and safetensors both ways.

files/ has models that Keras 3.15 and Flax 0.12 wrote, with their own answers; where these are
installed they read what we write.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from throughtime import GRU, LSTM, Gate, Readout, Recurrent, cells, from_torch
from throughtime.cli import main
from throughtime.errors import DataError, OptionError
from throughtime.export import from_flax, from_keras, from_safetensors, to_flax, to_keras
from throughtime.layers.stream.frozen import copy_frozen

h5py = pytest.importorskip("h5py", reason="no h5py here; pip install 'throughtime[export]'")
msgpack = pytest.importorskip("msgpack", reason="no msgpack; pip install 'throughtime[export]'")

FILES = Path(__file__).parent / "files"


def close(found: Any, wanted: Any) -> None:
    a, b = (v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for v in (found, wanted))
    assert a.shape == b.shape and np.abs(a - b).max() <= 1e-6


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_model_that_keras_wrote(file: str) -> None:
    """LSTM, two-way GRU merged by means, a GRU of a model inside, an RNN without biases."""
    answers, found = np.load(FILES / "keras.npz"), from_keras(FILES / file)
    assert {name: repr(layer) for name, layer in found.items()} == {
        "lstm_of_mine": "Recurrent(LSTM(), 2, 2, batch_first=True)",
        "two": "Recurrent(GRU(), 2, 2, bidirectional=True, merge='mean', batch_first=True)",
        "before": "Recurrent(GRUResetBefore(), 2, 2, batch_first=True)",
        "relu": "Recurrent(Elman(activation='relu'), 2, 2, bias=False, batch_first=True)",
    }
    v = torch.from_numpy(answers["x"])
    for name, layer in found.items():
        v = layer(v)[0]
        close(v, answers[name])


def test_parameters_that_flax_wrote() -> None:
    answers = np.load(FILES / "flax.npz")
    pairs = [("params/GRUCell_0", "params/GRUCell_1")]
    found = from_flax(FILES / "params.msgpack", pairs)
    assert list(found) == ["params/GRUCell_0", "params/OptimizedLSTMCell_0", "params/SimpleCell_0"]
    v = torch.from_numpy(answers["x"])
    for layer, name in zip(found.values(), ("gru", "lstm", "simple"), strict=True):
        v = layer(v)[0]
        close(v, answers[name])


def test_trees_of_nnx_have_the_same_letters() -> None:
    """Fused matrices, and `if_`, which Python has no attribute `if` for."""
    layer = LSTM(3, 4, batch_first=True)
    tree = to_flax(layer)["params"]["OptimizedLSTMCell_0"]
    split = {("if_" if name == "if" else name): part for name, part in tree.items()}
    fused = {
        f"dense_{side}": {
            key: np.concatenate([tree[f"{side}{g}"][key] for g in "ifgo"], -1)
            for key in tree[f"{side}i"]
        }
        for side in "ih"
    }
    x = torch.randn(2, 5, 3)
    for given in (split, fused):
        close(from_flax(given)["cell"](x)[0], layer(x)[0])


LAYERS: dict[str, Any] = {
    "LSTM": lambda: LSTM(3, 4, batch_first=True),
    "GRU": lambda: GRU(3, 4, batch_first=True),
    "two layers": lambda: LSTM(3, 4, 2, batch_first=True, bidirectional=True),
    "RNN": lambda: Recurrent(cells.Elman(), 3, 4, batch_first=True, bias=False),
    "time first": lambda: GRU(3, 4, bidirectional=True),
}


def in_rows(layer: Any, x: Tensor) -> Tensor:
    """(B, T, width) of (B, T, I), whatever the layer's own order."""
    if layer.batch_first:
        return layer(x)[0]  # type: ignore[no-any-return]
    return layer(x.transpose(0, 1))[0].transpose(0, 1)  # type: ignore[no-any-return]


def through(found: dict[str, nn.Module], v: Tensor) -> Tensor:
    for layer in found.values():
        v = layer(v)[0]
    return v


@pytest.mark.parametrize("name", LAYERS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    layer, x = LAYERS[name](), torch.randn(2, 5, 3)
    for file in ("net.keras", "net.h5"):
        close(through(from_keras(to_keras(layer, tmp_path / file)), x), in_rows(layer, x))
    tree = to_flax(layer, tmp_path / "net.msgpack")
    names = [f"params/{n}" for n in tree["params"]]
    pairs = list(zip(names[::2], names[1::2], strict=True)) if layer.directions == 2 else []
    for given in (tree, tmp_path / "net.msgpack"):
        close(through(from_flax(given, pairs), x), in_rows(layer, x))


KERAS: dict[str, Any] = {
    **LAYERS,
    "before": lambda: Recurrent(cells.GRUResetBefore(), 3, 4, batch_first=True),
    "merged": lambda: Recurrent(
        cells.Elman("sigmoid"), 3, 4, batch_first=True, bidirectional=True, merge="mul"
    ),
    "a stack": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.ELU(), Recurrent(cells.LSTM(), 6, 4, batch_first=True),
        Readout(4, 2, activation="tanh"),
    ),
    "an embedding": lambda: nn.Sequential(
        nn.Embedding(9, 3), nn.LayerNorm(3), GRU(3, 4, batch_first=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", KERAS)
def test_keras_reads_what_we_write(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="no keras here; pip install keras")
    model = KERAS[name]().eval()
    x = torch.randint(9, (2, 5)) if name == "an embedding" else torch.randn(2, 5, 3)
    read = keras.saving.load_model(to_keras(model, tmp_path / f"net{suffix}"), compile=False)
    y = model(x) if isinstance(model, nn.Sequential) else in_rows(model, x)
    close(read(x.numpy()), y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("name", LAYERS)
def test_flax_reads_what_we_write(name: str, tmp_path: Path) -> None:
    linen = pytest.importorskip("flax.linen", reason="no flax here; pip install flax")
    from flax import serialization

    layer, x = LAYERS[name](), torch.randn(2, 5, 3)
    to_flax(layer, tmp_path / "net")
    tree = serialization.msgpack_restore((tmp_path / "net").read_bytes())
    kind = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "Elman": "SimpleCell"}[
        type(layer.cell).__name__
    ]

    class Model(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact
        def __call__(self, v: Any) -> Any:
            for _ in range(len(layer.widths)):
                runs = [linen.RNN(getattr(linen, kind)(4)) for _ in range(layer.directions)]
                v = (linen.Bidirectional(*runs) if len(runs) == 2 else runs[0])(v)
            return v

    close(Model().apply(tree, x.numpy()), in_rows(layer, x))


def test_layers_and_cells_by_torchs_names(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    layer, cell = nn.GRU(3, 4, 2, bidirectional=True, bias=False), nn.LSTMCell(3, 4)
    held = {f"a.rnn.{n}": v for n, v in layer.state_dict().items()}
    held |= {f"b.{n}": v for n, v in cell.state_dict().items()}
    save({**held, "b.other": torch.zeros(2)}, tmp_path / "net.safetensors")
    found = from_safetensors(tmp_path / "net.safetensors")
    x = torch.randn(5, 2, 3)
    close(found["a.rnn"](x)[0], layer(x)[0])
    h = cell(x[0])[0]
    close(found["b"](x[:1])[0][0], h)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".msgpack", ".safetensors"])
def test_the_command_reads_layers_that_export_takes(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from throughtime.tasks.recipe import execute

    layer = Recurrent(cells.GRU(), 3, 4, batch_first=True)
    file = tmp_path / f"net{suffix}"
    if suffix == ".msgpack":
        to_flax(layer, file)
    elif suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(layer.state_dict(), file)
    else:
        to_keras(layer, file)
    assert main(["import", str(file), "--out", str(tmp_path / "in")]) == 0
    place, _, name = capsys.readouterr().out.split("\t")[0].rpartition(":")
    again = getattr(execute(Path(place)), name)
    x = torch.randn(2, 5, 3)
    close(in_rows(again, x), in_rows(layer, x))
    assert main(["export", f"{place}:{name}", "--to", "c", "--out", str(tmp_path / "out")]) == 0


def test_options_of_a_layer_come_through_the_command(tmp_path: Path) -> None:
    from throughtime.tasks.recipe import execute

    assert main(["import", str(FILES / "model.keras"), "--out", str(tmp_path)]) == 0
    layers = execute(tmp_path / "layers.py")
    for name, layer in from_keras(FILES / "model.keras").items():
        again = getattr(layers, name)
        assert repr(again) == repr(layer)
        for key, v in layer.state_dict().items():
            assert torch.equal(again.state_dict()[key], v)


def test_a_pair_names_each_cell_of_flax_once() -> None:
    tree = to_flax(LSTM(2, 3, bidirectional=True))
    one, other = (f"params/OptimizedLSTMCell_{k}" for k in range(2))
    for pairs in ([(one, one)], [(one, other), (other, one)]):
        with pytest.raises(OptionError, match="pairs must name each cell once, got 'params/Opt"):
            from_flax(tree, pairs)
    tree["params"]["OptimizedLSTMCell_0"]["ii"]["kernel"] = {"no": "array"}
    assert list(from_flax(tree)) == [other]


@pytest.mark.parametrize("config", [{"merge_mode": ["sum"]}, {"layer": {"class_name": ["LSTM"]}}])
def test_words_that_are_lists(config: dict[str, Any], tmp_path: Path) -> None:
    path = to_keras(LSTM(2, 3, bidirectional=True), tmp_path / "net.keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    model = json.loads(parts["config.json"])
    model["config"]["layers"][1]["config"] |= config
    parts["config.json"] = json.dumps(model).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"has merge_mode \['sum'\], which|must hold an LSTM, GRU"):
        from_keras(path)


def test_every_layer_gets_a_name_that_python_takes(tmp_path: Path) -> None:
    from throughtime.export.operators import Reversed, write_layers
    from throughtime.tasks.recipe import execute

    words = ["cells", "class", "torch", "Torch", "\u00e91", "", "7", "a/b", "a b"]
    layers: dict[str, nn.Module] = {word: Recurrent(cells.LSTM(), 2, 3) for word in words}
    layers["back"] = Reversed(Recurrent(cells.GRU(), 2, 3))
    names = write_layers(layers, tmp_path, "a.onnx")
    assert list(names.values()) == [
        "layer_cells", "layer_class", "layer_torch", "layer_torch_", "layer_1", "layer", "layer_7",
        "a_b", "a_b_", "back",
    ]  # fmt: skip
    read = execute(tmp_path / "layers.py")
    for word, name in names.items():
        weights = getattr(read, name).state_dict()
        for key, v in layers[word].state_dict().items():
            assert torch.equal(weights[key.removeprefix("layer.")], v)


def test_a_name_that_says_no_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "a.pb"), "--out", str(tmp_path)]) == 2
    assert "file must end in one of .onnx, .keras, .h5" in capsys.readouterr().err


# What is refused.


def _hdf5(change: Any) -> Any:
    def make(file: Path) -> Path:
        path = to_keras(LSTM(2, 3), file.with_suffix(".h5"))
        with h5py.File(path, "r+") as held:
            change(held, held["model_weights/lstm/lstm/cell"])
        return path

    return make


def _outside(held: Any, cell: Any) -> None:
    del cell["kernel:0"]
    cell["kernel:0"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft(held: Any, cell: Any) -> None:
    del held["model_weights/lstm/lstm"]
    held["model_weights/lstm/lstm"] = h5py.SoftLink("/model_weights/lstm")


def _circle(held: Any, cell: Any) -> None:
    cell["again"] = held["model_weights"]


def _apart(held: Any, cell: Any) -> None:
    del cell["kernel:0"]
    cell.create_dataset("kernel:0", (2, 12), "f4", external=[("/tmp/no", 0, 96)])


def _huge(held: Any, cell: Any) -> None:
    del cell["kernel:0"]
    cell.create_dataset("kernel:0", (2**40, 12), "f4", chunks=(16, 12))


def _whole_numbers(held: Any, cell: Any) -> None:
    del cell["kernel:0"]
    cell["kernel:0"] = np.zeros((2, 12), np.int32)


def _odd(held: Any, cell: Any) -> None:
    del cell["kernel:0"]
    cell["kernel:0"] = np.zeros((2, 11), np.float32)


def _deep(held: Any, cell: Any) -> None:
    held.attrs["model_config"] = "[" * 60_000


def _configured(**options: Any) -> Any:
    def change(held: Any, cell: Any) -> None:
        config = json.loads(held.attrs["model_config"])
        config["config"]["layers"][1]["config"].update(options)
        held.attrs["model_config"] = json.dumps(config)

    return _hdf5(change)


def _swollen(file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 50_000_000)
        archive.writestr("model.weights.h5", b"")
    return file


def _text(file: Path) -> Path:
    file.write_text("no model at all")
    return file


def _bytes(content: bytes) -> Any:
    def make(file: Path) -> Path:
        file.write_bytes(content)
        return file

    return make


def _array(shape: list[int], data: bytes = b"") -> bytes:
    part = msgpack.ExtType(1, msgpack.packb((shape, "float32", data)))
    return msgpack.packb({"h": {"kernel": part}, "i": {"kernel": part}})  # type: ignore[no-any-return]


HOSTILE: dict[str, tuple[Any, Any, str]] = {
    "a link outside": (from_keras, _hdf5(_outside), "is a link to elsewhere, which is not"),
    "a soft link": (from_keras, _hdf5(_soft), "is a link to elsewhere, which is not"),
    "a circle": (from_keras, _hdf5(_circle), "is not .more parts, or groups in groups, than any"),
    "numbers outside": (from_keras, _hdf5(_apart), "lies in another file, which is not opened"),
    "a huge shape": (from_keras, _hdf5(_huge), "says .* is .*, more than the file holds"),
    "whole numbers": (from_keras, _hdf5(_whole_numbers), "must be numbers, got int32"),
    "an odd shape": (from_keras, _hdf5(_odd), r"kernels for 4 gates, got \(2, 11\) and \(3, 12\)"),
    "deep": (from_keras, _hdf5(_deep), "has a description that cannot be read"),
    "swollen": (from_keras, _swollen, "says config.json is 50000000 bytes, more than it can hold"),
    "no hdf5": (from_keras, _text, "must be a file of HDF5, and it is not"),
    "hard": (
        from_keras, _configured(recurrent_activation="hard_sigmoid"),
        "has recurrent_activation 'hard_sigmoid', which no cell of ours has",
    ),
    "own code": (
        from_keras, _configured(activation={"class_name": "function", "config": "eval"}),
        "has activation .*, which no cell of ours has",
    ),
    "backwards": (from_keras, _configured(go_backwards=True), "goes backwards and gives"),
    "no layer": (
        from_keras, lambda f: to_keras(nn.Linear(2, 2), f.with_suffix(".keras")),
        "must hold an LSTM, GRU or SimpleRNN of Keras, and it has none",
    ),
    "no flax": (from_flax, _text, "must be a file of Flax, and it is not"),
    "flax, huge": (from_flax, _bytes(_array([2**40, 2**20])), "must be a file of Flax"),
    "flax, deep": (from_flax, _bytes(b"\x81\xa1a" * 100_000 + b"\xc0"), "must be a file of Flax"),
    "flax, odd": (
        from_flax, _bytes(_array([3, 2], bytes(24))), r"kernels for 1 gates, got \(3, 2\)",
    ),
    "flax, none": (from_flax, _bytes(msgpack.packb({"a": {"kernel": 1}})), "must hold an LSTM"),
    "safetensors": (from_safetensors, _text, "must be a file of safetensors, and it is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_not_taken(case: str, tmp_path: Path) -> None:
    read, make, said = HOSTILE[case]
    with pytest.raises(DataError, match=said):
        read(make(tmp_path / "net"))


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "params.msgpack"])
def test_damaged_files_are_read_or_told(name: str, tmp_path: Path) -> None:
    """Bytes changed at random; nothing but our own error ever comes."""
    read: Any = from_flax if name.endswith("msgpack") else from_keras
    content, draw, told = (FILES / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(200 if name.endswith("msgpack") else 12):
        damaged = bytearray(content)
        for place in draw.integers(len(damaged), size=6):
            damaged[place] = int(draw.integers(256))
        (tmp_path / name).write_bytes(damaged)
        try:
            read(tmp_path / name)
        except DataError:
            told += 1
    assert told


def test_weights_alone_are_taken_for_the_usual_with_a_warning(tmp_path: Path) -> None:
    layer, x = GRU(2, 3, batch_first=True), torch.randn(2, 5, 2)
    path = to_keras(layer, tmp_path / "net.h5")
    with h5py.File(path, "r+") as held, h5py.File(tmp_path / "alone.h5", "w") as alone:
        for name in held["model_weights"]:
            held.copy(f"model_weights/{name}", alone)
        alone.attrs["layer_names"] = held["model_weights"].attrs["layer_names"]
    with pytest.warns(UserWarning, match="weights alone and does not say how 'gru' is computed"):
        (again,) = from_keras(tmp_path / "alone.h5").values()
    close(again(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    ("write", "model", "said"),
    [
        (to_keras, lambda: Recurrent(cells.LEM(), 2, 3), "for which Keras has no layer"),
        (to_keras, lambda: Recurrent(cells.LSTMCoupled(), 2, 3), "for which Keras has no layer"),
        (to_flax, lambda: Recurrent(cells.LSTMCoupled(), 2, 3), "is no cell that Flax has"),
        (to_keras, lambda: nn.Sequential(nn.Linear(2, 2), Gate(2)), "is a Gate, which no layer of"),
        (to_keras, lambda: nn.Sequential(nn.Linear(2, 2), nn.ELU(0.5)), "is a ELU, which no layer"),
        (to_keras, lambda: Recurrent(cells.GRU(), 2, 3, dilation=2), "is dilated or residual"),
        (to_flax, lambda: Recurrent(cells.Elman("relu"), 2, 3), "is no cell that Flax has"),
        (to_flax, lambda: nn.Linear(2, 2), "layer must be a recurrent layer, got Linear"),
    ],
)  # fmt: skip
def test_models_that_are_not_written(write: Any, model: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=said):
        write(model(), tmp_path / "net.keras")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_says_its_format_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"file must end in .keras or .h5, got 'net.tf'"):
        to_keras(LSTM(1, 2), tmp_path / "net.tf")


def test_partners_must_be_there() -> None:
    with pytest.raises(DataError, match="has no cell 'b', it has params/GRUCell_0"):
        from_flax(to_flax(GRU(1, 2)), [("params/GRUCell_0", "b")])


def test_torchs_own_layers_are_written_too(tmp_path: Path) -> None:
    layer = nn.LSTM(2, 3, batch_first=True)
    (again,) = from_keras(to_keras(layer, tmp_path / "net.keras")).values()
    x = torch.randn(2, 4, 2)
    close(again(x)[0], copy_frozen(from_torch(layer))(x)[0])
