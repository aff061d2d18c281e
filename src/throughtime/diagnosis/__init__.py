"""Diagnosis: how far back a network learns and remembers, and why. One quantity a file."""
