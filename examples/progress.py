"""Lines that say where a run is."""

import sys
import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Prints one line per step of a phase, with the seconds spent and those that are probably left."""

    steps: int
    started: float = field(default_factory=time.monotonic)

    def step(self, done: int, text: str) -> None:
        """Say that `done` of the steps are done, and what came of the last."""
        spent = time.monotonic() - self.started
        left = spent / done * (self.steps - done)
        width = len(str(self.steps))
        say(f"  {done:>{width}}/{self.steps}  {text}   {spent:5.1f} s   ETA {left:3.0f} s")


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, file=sys.stdout, flush=True)
