"""Programs build classes of their own on torch.nn's recurrent layers, and so on ours."""

from __future__ import annotations

import abc
import copy
import pickle
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, skip_init

import throughtime
from tests.drop_in.pairs import KINDS, tensors
from throughtime import compat

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
MODULES: dict[str, Any] = {"nn": nn, "throughtime": throughtime, "compat": compat}
OURS = [(m, k) for m in ("throughtime", "compat") for k in (*KINDS, *CELLS)]
BASES: dict[str, Callable[[Any], Any]] = {}
V = TypeVar("V")


def program(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A way of programs to make a class from a layer's; every one of them is tried."""
    BASES[build.__name__] = build
    return build


class Meta(type):
    """A metaclass, as Pyro has one."""


class Watching(nn.Module, metaclass=Meta):
    """Is built and asked for each attribute that is set, as Pyro's modules are."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.__dict__.update(built=True, names=[])
        super().__init__(*args, **named)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.nn.RNN alone sets an attribute before the classes after it are built.
        vars(self).get("names", []).append(name)
        super().__setattr__("noted" if name == "note" else name, value)


class Doubling(nn.Module):
    """Is asked for every weight that is read, as Pyro's modules are."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return 2 * value if name.startswith("weight_hh") else value


def _handle(C: Any) -> Any:
    base: Any = nn.RNNCellBase if C.__name__.endswith("Cell") else nn.RNNBase

    class Handle(abc.ABC, base):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__("noted" if name == "note" else name, value)

        @abc.abstractmethod
        def width(self) -> int:
            """What the program asks of all its layers."""

    return Handle


@program
def abstract_before(C: Any) -> Any:
    """As pytorch-forecasting: class RNN(ABC, nn.RNNBase), then class LSTM(RNN, nn.LSTM)."""

    class Net(_handle(C), C):  # type: ignore[misc]
        def width(self) -> int:
            return int(self.hidden_size)

    return Net


@program
def abstract_after(C: Any) -> Any:
    class Net(C, _handle(C)):  # type: ignore[misc]
        def width(self) -> int:
            return int(self.hidden_size)

    return Net


@program
def mixin_after(C: Any) -> Any:
    class Net(C, Watching):  # type: ignore[misc]
        pass

    return Net


@program
def mixin_before(C: Any) -> Any:
    class Net(Watching, C):  # type: ignore[misc]
        pass

    return Net


@program
def two_mixins(C: Any) -> Any:
    class Net(C, Doubling, Watching):  # type: ignore[misc]
        pass

    return Net


@program
def generic(C: Any) -> Any:
    class Net(C, Generic[V]):  # type: ignore[misc]
        pass

    return Net[int]


@program
def with_every_base(C: Any) -> Any:
    """As Pyro: PyroModule[nn.GRU] puts its own class behind each base in turn."""
    bases = [with_every_base(b) for b in C.__bases__ if issubclass(b, nn.Module)]
    if C is nn.Module:
        return Watching
    return Meta(f"Of{C.__name__}", (C, *bases), {})


def draw(kind: str) -> torch.Tensor:
    return torch.randn(*(() if kind in CELLS else (5,)), 2, 3, dtype=torch.float64)


def values_and_gradients(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    y = tensors(layer(x))
    total = torch.stack([v.square().sum() for v in y]).sum()
    return [*y, *torch.autograd.grad(total, list(layer.parameters()))]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(("module", "kind"), OURS)
def test_a_class_of_several_bases(module: str, kind: str, name: str) -> None:
    theirs, ours = (BASES[name](getattr(MODULES[m], kind)) for m in ("nn", module))
    layers = theirs(3, 4, dtype=torch.float64), ours(3, 4, dtype=torch.float64)
    layers[1].load_state_dict(layers[0].state_dict(), strict=True)
    x, results = draw(kind), []
    for layer in layers:
        layer.note = 1
        results.append(values_and_gradients(layer, x))
        assert hasattr(layer, "noted") == (name != "generic")
        assert getattr(layer, "width", lambda: 4)() == 4
        assert layer.double().extra_repr() == "3, 4"
        if (
            name != "two_mixins"
        ):  # torch.nn's layer holds the doubled weight, which cannot be copied
            again = values_and_gradients(copy.deepcopy(layer), x)
            assert all(map(torch.equal, again, results[-1]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("module", "kind"), OURS)
def test_every_class_is_built_before_an_attribute_is_set(module: str, kind: str) -> None:
    class Strict(Watching):
        def __setattr__(self, name: str, value: Any) -> None:
            assert self.built
            super().__setattr__(name, value)

    layer = Meta("Net", (getattr(MODULES[module], kind), Strict), {})(3, 4)
    assert {"hidden_size", "bias"} <= set(layer.names)


@pytest.mark.parametrize(("module", "kind"), OURS)
def test_what_an_abstract_class_leaves_out_is_refused(module: str, kind: str) -> None:
    C = getattr(MODULES[module], kind)
    with pytest.raises(TypeError, match="Can't instantiate abstract class"):
        type("Net", (_handle(C), C), {})(3, 4)


class OfLayer(throughtime.GRU, Watching):
    """A class that pickle finds."""


class OfCompat(compat.GRU, Watching):
    """A class that pickle finds."""


class OfCell(throughtime.GRUCell, Watching):
    """A class that pickle finds."""


@pytest.mark.parametrize("kind", [OfLayer, OfCompat, OfCell])
def test_they_are_pickled(kind: type[Any]) -> None:
    layer = kind(3, 4)
    layer.note = 1
    x = torch.randn(2, 3)
    y = layer(x)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(tensors(again(x))[0], tensors(y)[0])
    assert again.noted == 1 and again.names == layer.names


@pytest.mark.parametrize(("module", "kind"), OURS)
def test_torchs_tools_work_on_a_class_of_several_bases(module: str, kind: str) -> None:
    """A parametrisation makes a class of the layer's class; a pruned weight is computed anew."""
    name = "weight_hh" if kind in CELLS else "weight_hh_l0"
    x, results = draw(kind), []
    layers = [mixin_after(getattr(MODULES[m], kind))(3, 4).double() for m in ("nn", module)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        prune.l1_unstructured(layer, name, amount=0.5)
        results.append(tensors(layer(x)))
        prune.remove(layer, name)
        parametrize.register_parametrization(layer, name, nn.Softsign())
        results.append(values_and_gradients(layer, x))
    torch.testing.assert_close(results[2:], results[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("module", "kind"), OURS)
def test_a_layer_without_a_start(module: str, kind: str) -> None:
    layer = skip_init(mixin_after(getattr(MODULES[module], kind)), 3, 4, dtype=torch.float64)
    plain = getattr(nn, kind)(3, 4, dtype=torch.float64)
    layer.load_state_dict(plain.state_dict())
    x = draw(kind)
    torch.testing.assert_close(tensors(layer(x)), tensors(plain(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("module", MODULES)
def test_an_lstm_written_with_torchs_own_parts(module: str) -> None:
    """A program's copy of torch's `forward`: its checks, permutation and list of weights."""

    class Own(MODULES[module].LSTM):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, hx: Any) -> Any:
            hx = self.permute_hidden(hx, torch.tensor([1, 0]))
            self.check_forward_args(x, hx, None)
            return torch.lstm(x, hx, self._flat_weights, True, 1, 0.0, False, False, False)[0]

    layer = Own(3, 4, proj_size=2)
    x, h, c = torch.randn(5, 2, 3), torch.randn(1, 2, 2), torch.randn(1, 2, 4)
    expected = nn.LSTM(3, 4, proj_size=2)
    expected.load_state_dict(layer.state_dict())
    turned = expected(x, (h[:, [1, 0]], c[:, [1, 0]]))[0]
    assert torch.equal(layer(x, (h, c)), turned)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 2\), got"):
        layer(x, (c, c))


class Started(throughtime.GRU):
    """Reads the sizes where it starts its weights."""

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.constant_(weight, self.hidden_size * self.num_layers)


def test_a_start_of_a_programs_own_knows_the_sizes() -> None:
    assert set(Started(3, 4, 2).weight_ih_l0.unique().tolist()) == {8.0}
