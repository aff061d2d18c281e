"""The report: the numbers of a diagnosis, as data and as JSON; `text` and `page` show them."""

from __future__ import annotations

import json
import math
import types
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from throughtime.diagnosis.observe import LayerDirection
from throughtime.diagnosis.quantities.capacity import MemoryCapacity
from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.quantities.connectivity import Connectivity
from throughtime.diagnosis.quantities.evenness import Evenness
from throughtime.diagnosis.quantities.gates import GateTimes
from throughtime.diagnosis.quantities.jacobians import Jacobians
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, Unseen
from throughtime.diagnosis.quantities.weight_lags import WeightLags
from throughtime.errors import OptionError

QUANTITIES = (
    "lag_gradients", "bands", "torch_default", "connectivity", "modules", "capacities",
    "weight_lags", "clipping", "evenness",
)  # fmt: skip
"""The fields of a report that are measured."""


@dataclass(frozen=True)
class ModuleReport:
    """One recurrent module of the model.

    Attributes:
        name: its name; empty when it is the model.
        cell: its cell in words.
        hidden_sizes: units of each layer, of one direction.
        start: what `throughtime.cure` started it with, while it has those weights; else empty.
        jacobians: of each layer and direction, on two rows; empty for 10 steps or fewer.
        gates: time scales and saturation of each layer and direction.
    """

    name: str
    cell: str
    hidden_sizes: tuple[int, ...]
    start: str
    jacobians: tuple[Jacobians, ...]
    gates: tuple[GateTimes, ...]


@dataclass(frozen=True)
class Band(LayerDirection):
    """The lag gradient's spread over batches, of one layer and direction.

    Attributes:
        batches: how many were measured, including the report's.
        lowest_log10_rho_by_lag: the least of log10 rho(k), from k = 0 to the last lag that all
            of them have.
        highest_log10_rho_by_lag: the greatest.
    """

    batches: int
    lowest_log10_rho_by_lag: tuple[float, ...]
    highest_log10_rho_by_lag: tuple[float, ...]


@dataclass(frozen=True)
class Missing:
    """A quantity that could not be measured; its place in the report is empty or None.

    Attributes:
        quantity: the report's field, or a field of a module.
        name: the module's name where it is one module's; else empty.
        reason: why, as a sentence.
    """

    quantity: str
    name: str
    reason: str


@dataclass(frozen=True)
class Trouble:
    """One trouble and what would change it.

    Attributes:
        kind: "not finite", "not seen", "exploding", "vanishing", "written too weakly",
            "frozen gates", "dead units", "truncation" or "clipping"; of a caution "remembers
            little".
        name: the module's name in the model; empty when it is the model or not one module's.
        sentence: the trouble with its number.
        advice: what to change, with the number measured after the change where one can be.
        log10_rho_before: for exploding and vanishing, log10 rho(lag) of the layer; else None.
        log10_rho_after: the same on a copy that was started anew; None where it could not be
            started or looked at.
    """

    kind: str
    name: str
    sentence: str
    advice: str
    log10_rho_before: float | None = None
    log10_rho_after: float | None = None


@dataclass(frozen=True)
class Report:
    """How far back a model learns, why, and what would change it.

    Measured on the first batch; `bands` on up to three, `clipping` on up to sixteen.

    Attributes:
        model: its class.
        steps: T, of the longest row.
        rows: B, all sequences of the first recurrent module.
        lag: how far back the task needs, steps.
        loss: its value; None where it is not finite.
        truncation: steps that the user's back-propagation reaches; None where unknown.
        lag_gradients: of each layer and direction that the last step's loss depends on.
        bands: their spread over batches; empty with a single batch.
        torch_default: the same lag gradients with the recurrent layers at torch's own start.
        connectivity: of each recurrent module.
        modules: the recurrent modules.
        capacities: what each layer and direction remembers.
        weight_lags: where each module's weight gradient comes from, on two rows.
        clipping: what clipping does, or the norms and the noise alone.
        evenness: how evenly the model learns.
        troubles: what is wrong, in the order of the rules; empty when nothing is.
        missing: what could not be measured, and why.
        cautions: findings that are no trouble, but no health either.
        lengths: steps of each row, where they differ.
        unseen: layers and directions whose last step the loss does not see.
        parameters: how many numbers the model has that can train, including frozen ones.
        version: of throughtime, that measured it.
        made: when, in UTC; no part of what makes two reports equal.
    """

    model: str
    steps: int
    rows: int
    lag: int
    loss: float | None
    truncation: int | None
    lag_gradients: tuple[LagGradient, ...] = ()
    bands: tuple[Band, ...] = ()
    torch_default: tuple[LagGradient, ...] = ()
    connectivity: tuple[Connectivity, ...] = ()
    modules: tuple[ModuleReport, ...] = ()
    capacities: tuple[MemoryCapacity, ...] = ()
    weight_lags: tuple[WeightLags, ...] = ()
    clipping: Clipping | None = None
    evenness: Evenness | None = None
    troubles: tuple[Trouble, ...] = ()
    missing: tuple[Missing, ...] = ()
    cautions: tuple[Trouble, ...] = ()
    lengths: tuple[int, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    parameters: int | None = None
    version: str = ""
    made: str = field(default="", compare=False)

    def to_json(self) -> str:
        """All numbers as JSON; what is not finite as a word."""
        return json.dumps(_simplify(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not of a report.
        """
        try:
            report: Report = _build(Report, json.loads(text))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the text is not the JSON of a Report: {error!r}") from error
        return report

    def save(self, file: str | PathLike[str]) -> None:
        """Write one self-contained HTML page, or the JSON, by the name's ending; makes folders.

        Raises:
            OptionError: another ending.
            MissingExtra: a page without plotly, which the extra `train` installs.
        """
        path = Path(file)
        if path.suffix not in (".html", ".json"):
            raise OptionError(f"a report is saved as .html or .json, got {path.name!r}")
        text = self.to_json() if path.suffix == ".json" else self._page()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _page(self) -> str:
        from throughtime.diagnosis.report.page import write_page

        return write_page(self)

    def compare(self, other: Report) -> str:
        """This report's horizon and gradients against another's, as a table."""
        from throughtime.diagnosis.report.text import compare_reports

        return compare_reports(self, other)

    def __str__(self) -> str:
        from throughtime.diagnosis.report.text import write_table

        return write_table(self)


def _simplify(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _simplify(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_simplify(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _build(kind: Any, value: Any) -> Any:
    """What a type hint says, of what JSON has."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_build(k, v) for k, v in zip(each, value, strict=True))
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(get_args(kind)[0], value)
    return float(value) if kind is float else value
