"""The report: all the numbers of one diagnosis as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from throughtime.diagnosis import data
from throughtime.diagnosis.capacity import MemoryCapacity
from throughtime.diagnosis.clipping import Clipping
from throughtime.diagnosis.connectivity import Connectivity
from throughtime.diagnosis.evenness import Evenness
from throughtime.diagnosis.gates import GateTimes
from throughtime.diagnosis.jacobians import Jacobians
from throughtime.diagnosis.lag_gradient import LagGradient, Unseen
from throughtime.diagnosis.table import compared, table
from throughtime.diagnosis.trouble import Trouble
from throughtime.diagnosis.weight_lags import WeightLags
from throughtime.errors import OptionError

QUANTITIES = (
    "lag_gradients", "bands", "torch_default", "connectivity", "modules", "capacities",
    "weight_lags", "clipping", "evenness",
)  # fmt: skip
"""The fields of a report that are measured."""


@dataclass(frozen=True)
class Module:
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
class Band:
    """The lag gradient's spread over batches, of one layer and direction.

    Attributes:
        name: the module's name in the model.
        layer: number of the layer in it.
        direction: 0 forward, 1 backward.
        batches: how many were measured, the report's own among them.
        lowest_log10_rho_by_lag: the least of log10 rho(k), from k = 0 to the last lag that all
            of them have.
        highest_log10_rho_by_lag: the greatest.
    """

    name: str
    layer: int
    direction: int
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
class Report:
    """How far back a model learns, why, and what would change it.

    Measured on the first batch; `bands` on up to three, `clipping` on up to sixteen.

    Attributes:
        model: its class.
        steps: T, of the longest row.
        rows: B, all sequences of the first recurrent module.
        lag: how far back the task needs, steps.
        loss: its value; None where the run did not come to a finite one.
        truncation: steps that the user's back-propagation reaches; None where it is not said.
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
        cautions: what is no trouble, but must not be taken for health.
        lengths: steps of each row, where they differ.
        unseen: layers and directions whose own last step the loss does not see.
        parameters: how many numbers the model has that can train, frozen ones among them.
        version: of throughtime, that measured it.
        made: when, in UTC; no part of what makes two reports equal.
    """

    model: str
    steps: int
    rows: int
    lag: int
    loss: float | None
    truncation: int | None
    lag_gradients: tuple[LagGradient, ...]
    bands: tuple[Band, ...]
    torch_default: tuple[LagGradient, ...]
    connectivity: tuple[Connectivity, ...]
    modules: tuple[Module, ...]
    capacities: tuple[MemoryCapacity, ...]
    weight_lags: tuple[WeightLags, ...]
    clipping: Clipping | None
    evenness: Evenness | None
    troubles: tuple[Trouble, ...]
    missing: tuple[Missing, ...]
    cautions: tuple[Trouble, ...] = ()
    lengths: tuple[int, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    parameters: int | None = None
    version: str = ""
    made: str = field(default="", compare=False)

    def to_json(self) -> str:
        """All numbers as JSON; what is not finite as a word."""
        return data.to_json(self)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not of a report.
        """
        return data.from_json(Report, text)

    def save(self, file: str | PathLike[str]) -> None:
        """Write one HTML page that needs nothing else, or the JSON, as the name's ending says.

        Args:
            file: ends in .html or .json; folders that are not there yet are made.

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
        from throughtime.diagnosis.page.write import page

        return page(self)

    def compare(self, other: Report) -> str:
        """This report's horizon and gradients beside another's, as a table."""
        return compared(self, other)

    def __str__(self) -> str:
        return table(self)
