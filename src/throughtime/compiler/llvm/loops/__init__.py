"""The loops over time, rows and phases that all cells share."""
