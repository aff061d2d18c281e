"""Machine code through LLVM: vector maths, loops, just-in-time compilation and its cache."""
