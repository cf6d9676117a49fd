"""Where figures come from: date, versions, hardware and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
LOAD = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None  # before anything is measured


def provenance(*packages: str, device: str | None = None) -> dict[str, Any]:
    """What JSON files of benchmarks say about the run, with the versions of torch, Lightning and ``packages``.

    ``device`` is where it ran; on the GPU, where there is one.
    """
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": {name: _version(name) for name in ("torch", "lightning", "lightning-prune", *packages)},
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "load": LOAD,
    }


def commit() -> str:
    """The commit that ran, with a plus where files of the package or the benchmarks differ from it."""
    named = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "lightning_prune", "benchmarks/*.py")
    return f"{named}+" if changed else named


def hardware(device: str | None = None) -> str:
    """The GPU, or the processor."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def in_words(content: dict[str, Any]) -> str:
    """The same as one line under a table."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    threads = f"{content['threads']} thread{'s' * (content['threads'] != 1)}"
    machine = f"{content['hardware']}, {threads}{load(content)}"
    return f"{content['date']}, commit {content['commit']}; {machine}; {versions}."


def load(content: dict[str, Any]) -> str:
    """How busy the machine was with other things; older files do not say."""
    found = content.get("load")
    return "" if found is None else f", load {found:.1f} at the start"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
