"""What torch does not promise stands in one file, and this torch still has all of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.house.source import Module, fresh, imports, modules
from throughtime import torch_private
from throughtime.compiler.runtime.threads import Runtime, runtime

ONE_FILE = "torch_private.py"

OF_TENSORS = {"_base", "_version", "_is_zerotensor", "_raw_saved_tensors", "_FlopCounterMode"}
"""Private attributes of torch's objects, whatever the object is called where they are read."""


def private_names(module: Module) -> Iterator[str]:
    """`file:line: name` of each private part of torch that a file names."""
    from_torch = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch"
        for alias in node.names
    }
    for line, name in imports(module):
        if name.startswith("torch.") and any(_is_private(part) for part in name.split(".")):
            yield f"{module.path}:{line}: {name}"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Attribute) or not _is_private(node.attr):
            continue
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        of_torch = isinstance(root, ast.Name) and root.id in {"torch", *from_torch}
        if of_torch or node.attr in OF_TENSORS:
            yield f"{module.path}:{node.lineno}: {node.attr}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_one_file_alone_names_private_parts_of_torch() -> None:
    found = [line for m in modules() if m.path != ONE_FILE for line in private_names(m)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch._C._get_tracing_state()",
        "from torch._subclasses.fake_tensor import FakeTensor",
        "from torch.utils._python_dispatch import _disable_current_modes",
        "from torch.autograd import forward_ad\nforward_ad._current_level",
        "from torch.nn.utils import parametrize as p\np._inject_property",
        "def f(v):\n    return v._version",
    ],
)
def test_a_private_name_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.py").write_text(text)
    assert list(private_names(modules(tmp_path)[0]))


def test_public_names_and_names_of_ours_pass(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import torch\ntorch.__version__\nself._modules\nx._replace()")
    assert list(private_names(modules(tmp_path)[0])) == []


@pytest.mark.parametrize("name", torch_private.INSTEAD)
def test_this_torch_has(name: str) -> None:
    assert name not in torch_private.LOST, (
        f"torch {torch.__version__} lost torch.{name}: {torch_private.INSTEAD[name]}"
    )


@pytest.mark.parametrize("name", Runtime.__dataclass_fields__)
def test_the_runtime_of_threads_has(name: str) -> None:
    found = runtime()
    assert found is not None, f"torch {torch.__version__} has no OpenMP runtime: one thread"
    assert getattr(found, name), name


@pytest.mark.parametrize(
    "name",
    [
        "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
        "_backward_hooks", "_backward_pre_hooks",
    ],
)  # fmt: skip
def test_modules_of_torch_have(name: str) -> None:
    assert name in vars(nn.Module()), f"torch {torch.__version__} lost nn.Module.{name}"


@pytest.mark.parametrize("name", ["_init_flat_weights", "_replicate_for_data_parallel", "_apply"])
def test_layers_of_torch_have(name: str) -> None:
    assert hasattr(nn.LSTM, name), f"torch {torch.__version__} lost nn.LSTM.{name}"


def test_flop_counters_have_a_mode_of_their_own() -> None:
    from torch.utils import flop_counter

    assert flop_counter._FlopCounterMode, f"torch {torch.__version__} lost FlopCounterMode's mode"


# The names are away while the package is imported; torch itself then has them again.
WITHOUT = """
import warnings
import torch
import torch._subclasses.fake_tensor, torch._subclasses.functional_tensor
taken = []
for name in {names}:
    *folder, last = name.split(".")
    place = torch
    for part in folder:
        place = getattr(place, part)
    taken.append((place, last, getattr(place, last)))
    delattr(place, last)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import throughtime
assert "lacks torch." + {names}[0] in str(said[-1].message), said
for place in taken:
    setattr(*place)
import throughtime as tt
from throughtime import torch_private
assert set(torch_private.LOST) == set({names}), torch_private.LOST
torch.manual_seed(0)
x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
theirs = torch.nn.LSTM(4, 6, dtype=torch.float64)
ours = tt.from_torch(theirs)
def gradients(layer):
    y = layer(x)[0]
    return (y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))
for v, w in zip(gradients(ours), gradients(theirs), strict=True):
    torch.testing.assert_close(v, w, rtol=1e-12, atol=1e-12)
"""

BELOW_VMAP = """
f = lambda x: ours(x)[0].sum()
each = torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x]).detach())
for v, w in zip(each, (x, 2 * x), strict=True):
    v_alone = torch.autograd.grad(theirs(w)[0].sum(), w)[0]
    torch.testing.assert_close(v, v_alone, rtol=1e-12, atol=1e-12)
"""


def without(*names: str, more: str = "") -> str:
    """What a process prints whose torch has none of these names: a layer's values, then `more`."""
    return fresh(WITHOUT.format(names=list(names)) + more)


def test_the_reference_computes_where_transforms_cannot_be_seen() -> None:
    said = without(
        "_C._functorch.get_dynamic_layer_stack_depth",
        more=BELOW_VMAP + "print(tt.GRU(4, 6).explain())",
    )
    assert "reference" in said
    assert "does not tell which transform of torch.func runs" in said


def test_the_reference_computes_where_their_kinds_cannot_be_seen() -> None:
    assert without("_C._functorch.get_interpreter_stack", more=BELOW_VMAP) == ""


def test_batched_gradients_are_refused_where_their_entries_cannot_be_seen() -> None:
    more = """
y = ours(x)[0].sum((0, 1))
try:
    torch.autograd.grad(y, x, torch.eye(6, dtype=torch.float64), is_grads_batched=True)
except tt.torch_private.TransformError as error:
    print(error)
"""
    said = without("_C._functorch.is_legacy_batchedtensor", more=more)
    assert said.startswith(
        "batched gradients (is_grads_batched, vectorize=True) need "
        f"torch._C._functorch.is_legacy_batchedtensor, which torch {torch.__version__} does not "
        "have; "
    )


def test_the_rest_is_slower_and_right() -> None:
    names = (
        "_C._len_torch_dispatch_stack", "_C._get_tracing_state", "_C._is_any_autocast_enabled",
        "_C._autograd._top_saved_tensors_default_hooks", "_C._dispatch_keys", "_foreach_norm",
        "utils._python_dispatch._disable_current_modes",
        "utils._python_dispatch._get_current_dispatch_mode_stack",
        "nn.utils.parametrize._inject_new_class", "autograd.forward_ad._current_level",
        "_C._is_fwd_grad_enabled", "autograd.forward_ad._set_fwd_grad_enabled",
        "_C._ExcludeDispatchKeyGuard",
    )  # fmt: skip
    more = """
v = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
assert [float(n) for n in torch_private.norms(v)] == [5.0, 1.0]
assert not torch_private.any_autocast()
with torch.autocast("cpu"):
    assert torch_private.any_autocast()
with torch.autograd.forward_ad.dual_level():
    assert torch_private.dual_level() >= 0
assert torch_private.dual_level() == -1
"""
    assert without(*names, more=more) == ""
