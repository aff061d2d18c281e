"""The panels of the page: one question a file, each with `panel(report) -> Panel`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.page.panel import Panel

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report


def draw_panels(report: Report) -> list[Panel]:
    """Every panel of this folder, in the order of their numbers."""
    files = [entry.name for entry in pkgutil.iter_modules(__path__)]
    drawn = [importlib.import_module(f"{__name__}.{name}").panel(report) for name in files]
    return sorted(drawn, key=lambda panel: int(panel.number))
