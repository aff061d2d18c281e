"""The panels of the page: one question a file, with QUANTITIES and `panel(report) -> Panel`."""
