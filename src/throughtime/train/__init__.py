"""Training: one loop, run folders, checkpoints, resume to the same bits.

`loop` trains a `learner` while others watch: `keeper` writes rows and checkpoints, `shown` shows,
a study's `learn` times. `run` and `storage` read and write run folders. All need the extra `train`.
"""
