"""How equations become code: the graph of a step and of its derivative."""

from throughtime.compiler.derivative import derivative as derivative
from throughtime.compiler.graph import Graph as Graph
from throughtime.compiler.trace import trace as trace
