"""A study: one memory task learned by many cells from many starts, over worker processes.

`runs` says which there are and trains one, `workers`, `on_ray` and `on_slurm` train several at a
time, `folder` keeps and sums up their outcomes, `search` draws them in place of a grid.
"""
