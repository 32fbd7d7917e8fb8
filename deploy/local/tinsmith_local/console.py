"""What the supervisor shows: its own progress, and the parts' lines under their names."""

import os
import sys
import threading
from typing import TextIO

_COLOURS = {"ray": 35, "train": 36, "sample": 33, "gateway": 34}
_WIDTH = 8


class Console:
    """Writes whole lines from many threads to one stream, coloured when it is a terminal.

    With `show_logs` False only progress is shown and the parts' lines go to their files alone.
    """

    def __init__(self, stream: TextIO | None = None, *, show_logs: bool = True) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._show_logs = show_logs
        self._coloured = self._stream.isatty() and "NO_COLOR" not in os.environ
        self._lock = threading.Lock()

    def log(self, part: str, line: str) -> None:
        """One line of a part's output."""
        if self._show_logs:
            self._write(part, line, _COLOURS.get(part, 37))

    def progress(self, line: str) -> None:
        """One line of the supervisor's own."""
        self._write("tinsmith", line, 32)

    def _write(self, name: str, line: str, colour: int) -> None:
        prefix = f"{name:<{_WIDTH}} |"
        if self._coloured:
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        with self._lock:
            try:
                self._stream.write(f"{prefix} {line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                # A closed terminal must not keep the stack from being taken down.
                self._show_logs = False
