"""Training on PyTorch Lightning: run folders, checkpoints, resume to the same bits.

`throughtime.train.run` reads and writes run folders and needs no Lightning, which
`throughtime.train.loop` trains with. Both need the extra `train`.
"""
