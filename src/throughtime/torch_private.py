"""Everything that torch does not promise and this package uses, each with what happens without it.

No other file names a private part of torch; `tests/house/test_private.py` sees to it. Where a torch
lacks one of these, calls are slower, or one transform is refused with a sentence: never wrong.
What is unknown is taken for the worst: a transform that may run is one that runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Final, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from throughtime.errors import TransformError

_NODE = (
    "_C._aoti.alloc_tensors_by_stealing_from_void_ptrs",
    "_C._aoti.unsafe_alloc_void_ptrs_from_tensors", "_C._dispatch_has_kernel_for_dispatch_key",
)  # fmt: skip
INSTEAD: Final = {
    "_C._functorch.get_dynamic_layer_stack_depth": "every call is computed by the reference",
    "_C._functorch.get_interpreter_stack": "calls below torch.func are computed by the reference",
    "_C._are_functorch_transforms_active": "the depth of transforms is asked in its place",
    "_C._len_torch_dispatch_stack": "every call goes through the dispatcher",
    "_C._get_tracing_state": "torch.jit.is_tracing is asked",
    "_C._is_fwd_grad_enabled": "forward mode is taken to be on at each of its levels",
    "_C._is_any_autocast_enabled": "autocast is asked device by device",
    "_C._autograd._top_saved_tensors_default_hooks": "the output is copied for backward",
    "_C._FunctionBase._raw_saved_tensors": "the output is copied for backward",
    "_C._dispatch_keys": "subclasses of tensors are computed by torch's own operations",
    "_C._functorch.is_legacy_batchedtensor": "batched gradients are refused",
    "_C._vmapmode_increment_nesting": "batched gradients are refused",
    "_C._vmapmode_decrement_nesting": "batched gradients are refused",
    "_remove_batch_dim": "batched gradients are refused",
    "_add_batch_dim": "batched gradients are refused",
    "_C.DispatchKey": "compiled functions are refused",
    "_C.DispatchKeySet": "the operator's gradient by the reference is refused",
    "_C._ExcludeDispatchKeyGuard": "torch.autocast is used inside the operator",
    "_C._AutoDispatchBelowAutograd": "compiled functions are refused",
    "_C._ForceDispatchKeyGuard": "the operator's gradient by the reference is refused",
    "_C._dispatch_tls_local_exclude_set": "the operator's gradient by the reference is refused",
    "_C._dispatch_tls_local_include_set": "the operator's gradient by the reference is refused",
    "_C._dynamo.guards.TensorGuards": "tensors of repeated calls are looked at one by one",
    **dict.fromkeys(_NODE, "small calls are carried and recorded in Python"),
    "_foreach_norm": "norms are taken tensor by tensor",
    "Tensor._is_zerotensor": "zeros without memory are refused",
    "Tensor._base": "a window of a view is taken for one that something computed",
    "Tensor._version": "weights that change between windows are not warned of",
    "autograd.forward_ad._current_level": "a dual tensor is made to see whether there is a level",
    "autograd.forward_ad._set_fwd_grad_enabled": "forward mode stays on inside the operator",
    "_subclasses.fake_tensor.FakeTensor": "fake tensors are computed by torch's own operations",
    "_subclasses.functional_tensor.FunctionalTensor": "so are functional ones",
    "utils._python_dispatch._disable_current_modes": "modes see the trial run of a cell",
    "utils._python_dispatch._get_current_dispatch_mode_stack": "FLOPs of open counters are lost",
    "nn.utils.parametrize._inject_new_class": "parametrized layers are not converted",
    "nn.utils.parametrize._inject_property": "parametrized layers are not converted",
    "_decomp.register_decomposition": "torch.onnx.export knows no recurrent layer",
}  # fmt: skip
"""Dotted names below torch, and what happens where torch has one no more."""


def _look_up(name: str) -> Any:
    """What torch has under a dotted name; None where it has nothing there."""
    value: Any = torch
    for part in name.split("."):
        within, value = value, getattr(value, part, None)
        if value is None and isinstance(within, ModuleType):
            try:
                value = import_module(f"{within.__name__}.{part}")
            except ImportError:
                return None
    return value


_HAS: Final = {name: _look_up(name) for name in INSTEAD}
LOST: Final = tuple(name for name, value in _HAS.items() if value is None)
"""The names that this torch does not have."""


def _or(name: str, otherwise: Any) -> Any:
    """What torch has under a name of `INSTEAD`, or what does its work."""
    return otherwise if _HAS[name] is None else _HAS[name]


def _refuse(what: str, *names: str) -> NoReturn:
    gone = ", ".join(f"torch.{name}" for name in names if name in LOST)
    raise TransformError(
        f"{what} need {gone}, which torch {torch.__version__} does not have; "
        f"do without them, or install a torch named in docs/support.md"
    )


# Who looks on. These are asked at every call, so they are torch's own functions.

transform_depth: Final[Callable[[], int]] = _or(
    "_C._functorch.get_dynamic_layer_stack_depth", lambda: 1
)
"""How many transforms of torch.func the call stands below."""

below_transform: Final[Callable[[], bool]] = _or(
    "_C._are_functorch_transforms_active", lambda: transform_depth() > 0
)
"""Whether there is one; torch 2.9 traces this inside a compiled function, and not the depth."""

mode_count: Final[Callable[[], int]] = _or("_C._len_torch_dispatch_stack", lambda: 1)
"""How many dispatch modes look on."""


def _is_tracing() -> Any:
    return torch.jit.is_tracing() or None  # type: ignore[attr-defined, no-untyped-call]


tracer: Final[Callable[[], Any]] = _or("_C._get_tracing_state", _is_tracing)
"""The tracer of torch.jit.trace and of the older exporter to ONNX, or None."""


def transforms() -> list[str] | None:
    """The kinds of the transforms that run, outermost first: "Grad", "Vmap"; None: not known."""
    if not transform_depth():
        return []
    stack = _HAS["_C._functorch.get_interpreter_stack"]
    if stack is None or "_C._functorch.get_dynamic_layer_stack_depth" in LOST:
        return None
    return [level.key().name for level in stack() or ()]


UNKNOWN: Final = f"torch {torch.__version__} does not tell which transform of torch.func runs"
"""Why a backend with fewer rules than the reference is not used where `transforms` is None."""


def _probe_dual_level() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch loads for its first dual tensor
        try:
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
        except RuntimeError:
            return -1
    return 0


dual_level: Final[Callable[[], int]] = (
    _probe_dual_level
    if "autograd.forward_ad._current_level" in LOST
    else partial(getattr, forward_ad, "_current_level")
)
"""The level of forward-mode differentiation that is open; -1: none."""


takes_tangents: Final[Callable[[], bool]] = _or("_C._is_fwd_grad_enabled", lambda: True)
"""Whether tensors of such a level pass their tangents on."""


def without_tangents() -> AbstractContextManager[Any]:
    """Forward mode switched off."""
    off: Any = _HAS["autograd.forward_ad._set_fwd_grad_enabled"]
    return nullcontext() if off is None else off(False)


any_autocast: Final[Callable[[], bool]] = _or(
    "_C._is_any_autocast_enabled",
    lambda: any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda", "mps")),
)
"""Whether autocast is on for some device."""


def has_saving_hooks() -> bool:
    """Whether hooks take the tensors that are saved for backward."""
    top = _HAS["_C._autograd._top_saved_tensors_default_hooks"]
    return top is None or top(True) is not None


SAVED_ONE_BY_ONE: Final = "_C._FunctionBase._raw_saved_tensors" not in LOST and hasattr(
    _look_up("_C._autograd.SavedTensor"), "unpack"
)
"""Whether what a function saved can be asked for piece by piece; torch 2.9 cannot."""


def saved_but_one(ctx: Any, left_out: int) -> tuple[Any, ...]:
    """What a function saved for backward, without asking for the one at this place.

    Raises:
        RuntimeError: torch's own, if one of the others has been changed in place.
    """
    if not SAVED_ONE_BY_ONE:
        saved: tuple[Any, ...] = ctx.saved_tensors
        return (*saved[:left_out], *saved[left_out + 1 :])
    return tuple(v.unpack() for i, v in enumerate(ctx._raw_saved_tensors) if i != left_out)


def is_exporting() -> bool:
    """Whether torch.export runs; the compiler of torch 2.9 always says so of itself, though asked
    for by torch.compile, and then the answer is no."""
    return torch.compiler.is_exporting() and not (
        SAYS_EXPORT and torch.compiler.is_dynamo_compiling()
    )


SAYS_EXPORT: Final = torch.__version__.startswith("2.9.")


def modes() -> Sequence[Any]:
    """The dispatch modes that look on."""
    return _or("utils._python_dispatch._get_current_dispatch_mode_stack", tuple)()  # type: ignore[no-any-return]


def without_modes() -> AbstractContextManager[Any]:
    """Inside, no dispatch mode looks on; where none does, nothing of torch is imported for it."""
    disable = _HAS["utils._python_dispatch._disable_current_modes"]
    return disable() if disable is not None and modes() else nullcontext()


def on_processor() -> AbstractContextManager[Any]:
    """Inside, new tensors lie on the processor; asking for a default device imports a module."""
    return torch.device("cpu") if "torch.utils._device" in sys.modules else nullcontext()


def counts_flops(mode: Any, module: Any) -> bool:
    """Whether a mode is the one of a FlopCounterMode; `module` is torch.utils.flop_counter."""
    kind = getattr(module, "_FlopCounterMode", None)
    return kind is not None and isinstance(mode, kind)


HAS_NODE: Final = not any(name in LOST for name in _NODE)
"""Whether torch's node of a recurrent layer can be carried."""

stolen, handles_of, has_kernel = map(_HAS.__getitem__, _NODE)
"""Tensors from handles of torch's stable interface, and handles of tensors; whether
an operator has a kernel for a dispatch key."""

# Tensors.

DISPATCHED: Final[tuple[type[Tensor], ...]] = tuple(
    kind for name, kind in _HAS.items() if name.startswith("_subclasses.") and kind is not None
)
"""Subclasses that any operator of the dispatcher takes."""


Guard = Callable[..., bool]


def guard(tensors: Sequence[Tensor]) -> Guard:
    """Says of as many tensors whether they are like these, in one call; it holds none of them.

    Alike are the class, what the dispatcher sees of each (its device, negative and batched ones,
    and with them modes and transforms of torch), the dtype, the shape, the strides and whether a
    gradient is wanted. Not looked at: how large the storage is, and modes of Python functions.
    Torch's takes no tensor twice, neither here nor when it is asked.
    """
    kind = _HAS["_C._dynamo.guards.TensorGuards"]
    if kind is None:
        return _guard_in_python(tensors)
    made = kind(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return made.check  # type: ignore[no-any-return]


def _guard_in_python(tensors: Sequence[Tensor]) -> Guard:
    def look(v: Any) -> tuple[Any, ...]:
        if not isinstance(v, Tensor):
            return ()
        kind = type(v), v.device, v.dtype, v.shape, v.requires_grad, v.is_inference()
        return *kind, v.is_neg(), v.is_conj(), is_zero_tensor(v), v.stride()

    wanted = [look(v) for v in tensors]

    def check(*values: Any) -> bool:
        if mode_count() or transform_depth() or any_autocast():
            return False
        return [look(v) for v in values] == wanted

    return check


def is_python(v: Tensor) -> bool:
    """Whether a tensor's operations are written in Python; each subclass, where torch is silent."""
    keys, kinds = _HAS["_C._dispatch_keys"], _HAS["_C.DispatchKey"]
    if keys is None or kinds is None:
        return type(v) is not Tensor and type(v) is not torch.nn.Parameter
    return bool(keys(v).has(kinds.Python))


def is_functional(v: Tensor) -> bool:
    """Whether torch.func.functionalize wraps a tensor."""
    keys, kinds = _HAS["_C._dispatch_keys"], _HAS["_C.DispatchKey"]
    return keys is None or kinds is None or bool(keys(v).has(kinds.Functionalize))


def is_zero_tensor(v: Tensor) -> bool:
    """Whether a tensor is zeros without memory, as torch makes them for missing tangents."""
    return "Tensor._is_zerotensor" not in LOST and v._is_zerotensor()


def base_of(v: Tensor) -> Tensor:
    """The tensor that a view looks at; the tensor itself where it is none."""
    base: Tensor | None = getattr(v, "_base", None)
    return v if base is None else base


def version_of(v: Tensor) -> int:
    """How often a tensor has been changed in place; always 0 where torch does not count."""
    return int(getattr(v, "_version", 0))


def norms(values: Sequence[Tensor], order: float = 2) -> Sequence[Tensor]:
    """The norm of each tensor, of all its numbers."""
    every = _HAS["_foreach_norm"]
    if every is None:
        return [torch.linalg.vector_norm(v, order) for v in values]
    return every(list(values), order)  # type: ignore[no-any-return]


# Batched gradients, by torch's older vmap.

_OLD_VMAP = (
    "_C._functorch.is_legacy_batchedtensor", "_C._vmapmode_increment_nesting",
    "_C._vmapmode_decrement_nesting", "_remove_batch_dim", "_add_batch_dim",
)  # fmt: skip
has_old_vmap: Final = not any(name in LOST for name in _OLD_VMAP)
"""Whether torch lets us take apart what its older vmap batches."""

is_old_batched, enter_old_level, leave_old_level, take_apart, put_together = map(
    _HAS.__getitem__, _OLD_VMAP
)


def refuse_batched() -> NoReturn:
    """Raises: torch has no way to see the entries of a batched gradient."""
    _refuse("batched gradients (is_grads_batched, vectorize=True)", *_OLD_VMAP)


# The dispatcher, inside the operator.

AUTOCAST: Final = tuple(
    (key, device)
    for key, device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda"), ("AutocastMPS", "mps"))
    if hasattr(_HAS["_C.DispatchKey"], key) or (_HAS["_C.DispatchKey"] is None and device == "cpu")
)
"""The dispatcher's keys for autocast, and the devices they are of."""


def without_autocast(key: str, device: str) -> AbstractContextManager[Any]:
    """What is called inside passes over this key of `AUTOCAST`."""
    guard, kinds, keys = map(
        _HAS.__getitem__, ("_C._ExcludeDispatchKeyGuard", "_C.DispatchKey", "_C.DispatchKeySet")
    )
    if guard is None or kinds is None or keys is None:
        return torch.autocast(device, enabled=False)
    return guard(keys(getattr(kinds, key)))  # type: ignore[no-any-return]


def below_autograd() -> AbstractContextManager[Any]:
    """What is called inside is not recorded, and passes over the key of autograd."""
    guard = _HAS["_C._AutoDispatchBelowAutograd"]
    if guard is None:
        _refuse("compiled functions with recurrent layers", "_C._AutoDispatchBelowAutograd")
    return guard()  # type: ignore[no-any-return]


_FORCED = (
    "_C._ForceDispatchKeyGuard", "_C.DispatchKey", "_C.DispatchKeySet",
    "_C._dispatch_tls_local_exclude_set", "_C._dispatch_tls_local_include_set",
)  # fmt: skip


def above_autograd() -> AbstractContextManager[Any]:
    """The dispatcher records again, inside an operator where it has stopped."""
    guard, kinds, keys, excluded, included = map(_HAS.__getitem__, _FORCED)
    if any(name in LOST for name in _FORCED):
        _refuse("gradients of the reference inside an operator", *_FORCED)
    left = excluded()
    for name in ("AutogradCPU", "AutogradCUDA", "AutogradMPS", "AutogradOther"):
        left = left - keys(getattr(kinds, name))
    return guard(included(), left)  # type: ignore[no-any-return]


# Parametrizations.


def parametrize_anew(layer: torch.nn.Module, weights: Sequence[str]) -> None:
    """Make the parametrizations that a layer was given work, as the layer they came from had it."""
    names = ("nn.utils.parametrize._inject_new_class", "nn.utils.parametrize._inject_property")
    make_class, make_property = map(_HAS.__getitem__, names)
    if make_class is None or make_property is None:
        _refuse("parametrized layers", *names)
    make_class(layer)
    for weight in weights:
        make_property(layer, weight)


made_of: Final[Callable[..., Any]] = _or("_decomp.register_decomposition", lambda op: lambda f: f)
"""A decorator, of an operator: its function is what torch.onnx.export finds in the operator."""
