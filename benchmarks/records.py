"""Where benchmarks write what they found, and of which checkout it tells."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def commit() -> str:
    """The checkout's commit."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def results_path(machine: str, bench: str) -> Path:
    """The file of today's rows of a benchmark on a machine."""
    return ROOT / "benchmarks" / "results" / f"{date.today().isoformat()}-{machine}-{bench}.json"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows, a line each."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
