"""Graphs made into graphs that are simpler to turn into code."""
