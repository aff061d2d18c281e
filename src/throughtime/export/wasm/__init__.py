"""Programs in browsers: a WebAssembly module that needs no linker, its loader and a page."""
