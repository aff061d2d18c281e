"""The report as one HTML file that needs nothing else; drawn by plotly, of the extra `train`.

Every file in `panels` is a panel; a new one is found by itself.
"""
