"""Every table of RESULTS.md: python benchmarks/run_all.py [--small] [--only cifar10 speed ...] [--page].

Runs the scripts one after the other, each in a process of its own, then writes RESULTS.md and the figures of the
README out of the files that they leave. A script that fails does not stop the others; the exit status says so in the
end, and so does RESULTS.md. ``--small`` takes less than an hour on a CPU and measures everything anew. Without it, the
scripts run in full, which belongs to a GPU; CIFAR-10 then goes on where an earlier call has stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from common.figures import fill
from common.results_page import PARTS, note, results
from common.tables import RESULTS

FOLDER = Path(__file__).parent
NAMES = [part.name for part in PARTS]


def command_of(name: str, small: bool, empty: Path) -> list[str]:
    """What runs a script; ``empty`` is a new folder."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    if not small:
        return command
    if name == "criteria":
        return [*command, "--seeds", "0", "--json", str(RESULTS / "criteria_small.json")]
    command.append("--small")
    if any(part.for_gpu for part in PARTS if part.name == name):
        command += ["--device", "cpu"]
    if name == "cifar10":
        command += ["--anew", "--work", str(empty)]
    return command


def run(name: str, small: bool) -> int:
    """The exit status of a script, which shows its own output."""
    print(f"==== {name}", flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        status = subprocess.run(command_of(name, small, Path(empty)), check=False).returncode
    seconds = round(time.perf_counter() - began, 1)
    outcome = {"date": date.today().isoformat(), "seconds": seconds, "exit": status}
    note(RESULTS, "small" if small else "full", name, outcome)
    print(f"==== {name}: {f'FAILED with exit status {status}' if status else 'done'}, {seconds:.0f} s", flush=True)
    return status


def write_pages() -> None:
    (FOLDER / "RESULTS.md").write_text(results(RESULTS), encoding="utf-8")
    readme = FOLDER.parent / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="on a CPU, in less than an hour")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--page", action="store_true", help="measure nothing; write RESULTS.md and README.md")
    options = parser.parse_args(arguments)
    names = [] if options.page else [name for name in NAMES if name in options.only]
    failed = [name for name in names if run(name, options.small)]
    write_pages()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
