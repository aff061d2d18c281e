"""A study: one memory task learned by many cells from many starts, over worker processes.

`grid` says which runs there are, `learn` is one of them, `workers` has them
done at the same time, `folder` keeps what they came to and says what that means.
"""
