"""Runs the session of every SDK version against one stack, and says what came of it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.compatibility.sdks import make_environment, python_of
from tools.packages import ROOT, clean_environment

if TYPE_CHECKING:
    from tinsmith_local import Stack

SESSION = Path(__file__).with_name("session.py")
TIMEOUT_S = 300
YES, NO_SUCH_CALL = "yes", "no such call"

_REQUESTS = re.compile(r'^tinsmith_http_requests_total\{method="(\w+)",route="/([^"]+)",status="[23]', re.M)


@dataclass(frozen=True)
class Verdict:
    """What one version does of one capability; `about` says what was checked."""

    about: str
    verdict: str
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the version has it and it does not work."""
        return self.verdict not in (YES, NO_SUCH_CALL)


@dataclass(frozen=True)
class VersionResult:
    """A version's verdicts by capability, and the endpoints that it reached with success."""

    version: str
    verdicts: Mapping[str, Verdict]
    endpoints: frozenset[str]

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        return tuple(
            f"{self.version}: {name}: {verdict.verdict}"
            for name, verdict in self.verdicts.items()
            if verdict.failed
        )


def try_version(stack: Stack, version: str) -> VersionResult:
    """Make the version's environment and run its session. What goes wrong in it is part of the result."""
    make_environment(version)
    before = _endpoints(stack)
    environment = clean_environment() | {"TINKER_BASE_URL": stack.base_url, "TINKER_API_KEY": stack.api_key}
    log = ROOT / "out" / "compatibility" / f"{version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        done = subprocess.run(
            [python_of(version), SESSION],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            timeout=TIMEOUT_S,
            text=True,
            check=False,
        )
    verdicts: dict[str, Verdict] = {}
    for line in done.stdout.splitlines():
        answer: dict[str, Any] = json.loads(line)
        name = answer.pop("name")
        verdicts[name] = Verdict(**answer)
    if done.returncode != 0:
        verdicts["the session"] = Verdict("", f"ended with status {done.returncode}; see {log}")
    after = _endpoints(stack)
    reached = frozenset(name for name, count in after.items() if count > before.get(name, 0))
    return VersionResult(version, verdicts, reached)


def _endpoints(stack: Stack) -> dict[str, float]:
    """How often each endpoint has answered without an error, by both services."""
    counts: dict[str, float] = {}
    for service in ("train", "sample"):
        with urllib.request.urlopen(f"{stack.service_url(service)}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if match := _REQUESTS.match(line):
                name = f"{match[1]} {match[2]}"
                counts[name] = counts.get(name, 0.0) + float(line.rpartition(" ")[2])
    return counts
