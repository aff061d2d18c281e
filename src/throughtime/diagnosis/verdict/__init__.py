"""The verdict: which trouble the numbers show, and what a change would do, measured."""
