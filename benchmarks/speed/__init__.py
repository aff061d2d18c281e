"""Time of our layers beside that of others, shape by shape, in one run: `run.py` says how."""
