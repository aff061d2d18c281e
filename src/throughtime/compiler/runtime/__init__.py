"""Machine code at run time: made for this machine, kept on disk, called on torch's threads."""
