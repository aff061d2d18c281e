"""Exports: built by the compilers that are here, run, and compared with the model."""
