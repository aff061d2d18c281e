"""The report: the numbers of a diagnosis as data, as text and as a page."""
