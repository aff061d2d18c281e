"""What a run was made on: the machine, the versions, the commit and what was changed since."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "llvmlite", "onnxruntime", "openvino", "onnx")
PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_")
SIMD = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, and the vector instructions it has."""
    said = _cpuinfo()
    flags = (said.get("flags") or said.get("Features") or "").split()
    return {
        "processor": said.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "flags": [flag for flag in SIMD if flag in flags],
        "environment": {n: v for n, v in os.environ.items() if n.startswith(PREFIXES)},
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpuinfo() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def describe_versions() -> dict[str, str]:
    """Python and every package that is timed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_source() -> dict[str, Any]:
    """The commit, whether tracked source differs from it, and a mark of the difference."""
    changes = git("diff", "HEAD", "--", "src", "benchmarks/*.py")
    mark = hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""
    return {
        "commit": git("rev-parse", "--short=12", "HEAD").strip(),
        "dirty": bool(changes),
        "changes": mark,
    }


def git(*arguments: str) -> str:
    """What git says; nothing where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout
