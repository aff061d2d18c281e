"""Tables of the users' own: read from a file, their columns found, what is wrong told by row."""
