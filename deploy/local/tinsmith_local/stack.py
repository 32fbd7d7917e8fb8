"""The supervisor: starts the parts in order, watches them, and takes all of them down together."""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tinsmith_local.config import StackConfig
from tinsmith_local.console import Console
from tinsmith_local.errors import PartFailed, StackError, StackInterrupted
from tinsmith_local.parts import Part, base_urls, choose_ports, own_certificate, sample_names, stack_parts
from tinsmith_local.ports import check_port
from tinsmith_local.process import PartProcess

_POLL_S = 0.1
_PROGRESS_EVERY_S = 5.0


@dataclass
class _Start:
    """A part on its way to being ready; times are of the monotonic clock, in seconds."""

    part: Part
    begun: float
    spoken: float = field(default_factory=time.monotonic)


class Stack:
    """Ray, the train service, the sample service and Envoy on this machine.

    A context manager: entering starts everything and returns when the gateway answers, leaving stops everything. A
    part that ends by itself takes the whole stack down, unless another replica of it runs; `failure` then says which
    and why. A part ended with `kill` stays down, without harm to the others, until `restart`: nothing is ever
    restarted unasked.
    """

    def __init__(self, config: StackConfig, console: Console | None = None) -> None:
        self.config = config
        self.failure: PartFailed | None = None
        self._console = console or Console(show_logs=False)
        self._ports = choose_ports(config)
        self._parts = {part.name: part for part in stack_parts(config, self._ports)}
        self._processes: dict[str, PartProcess] = {}
        self._held = ExitStack()
        self._interrupts = 0
        self._up = False
        self._stopping = threading.Lock()

    @property
    def base_url(self) -> str:
        """What TINKER_BASE_URL must be; of two listeners the cleartext one."""
        return next(iter(base_urls(self.config, self._ports).values()))

    @property
    def tls_url(self) -> str:
        """What TINKER_BASE_URL must be for HTTPS. Raises KeyError without `tls_port`."""
        return base_urls(self.config, self._ports)["https"]

    @property
    def ca_bundle(self) -> Path | None:
        """What SSL_CERT_FILE must be for HTTPS under a certificate made here; else None."""
        own = own_certificate(self.config)
        return None if own is None else own.ca_bundle

    @property
    def client_environment(self) -> dict[str, str]:
        """What the SDK reads to find this stack at `base_url`."""
        trust = {} if self.ca_bundle is None else {"SSL_CERT_FILE": str(self.ca_bundle)}
        return {"TINKER_BASE_URL": self.base_url, **trust, "TINKER_API_KEY": self.api_key}

    def service_url(self, name: str) -> str:
        """Where a part listens behind the gateway, or the gateway's own admin interface: for figures."""
        ports = {"train": self._ports.train, "gateway": self._ports.admin}
        ports |= zip(sample_names(self.config), self._ports.samples, strict=True)
        return f"http://127.0.0.1:{ports[name]}"

    @property
    def api_key(self) -> str:
        """What TINKER_API_KEY must be for the SDK."""
        return self.config.sdk_api_key

    @property
    def up(self) -> bool:
        """True between a complete start and the beginning of a stop or a crash."""
        return self._up

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interrupts > 0

    @property
    def log_dir(self) -> Path:
        """Holds one log file per part and, after a stop, Ray's own logs."""
        return self.config.data_dir / "logs"

    def start(self) -> None:
        """Start every part; returns when the gateway answers.

        Raises StackError when the start is impossible (a taken port, a missing interpreter), PartFailed when a part
        ends or is not ready in time, StackInterrupted after `interrupt`. Whatever had started is then stopped again.
        """
        for port in (self._ports.http, self._ports.https):
            if port is not None:
                check_port(self.config.host, port)
        self._hold_data_dir()
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            for name in self._parts:
                self._log_path(name).unlink(missing_ok=True)
            self._bring_up(tuple(self._parts.values()))
        except BaseException:
            self.stop()
            raise
        self._up = True
        if self.failure is not None:
            self.stop()
            raise self.failure

    def stop(self) -> None:
        """Stop every part and wait until none of their processes is left. Safe to call again, from any thread."""
        self._up = False
        with self._stopping:
            services = [process for name, process in self._processes.items() if name != "ray"]
            self._end(services)
            if "ray" in self._processes:
                self._keep_ray_logs()
                self._end([self._processes["ray"]])
            self._processes.clear()
            self._held.close()

    def interrupt(self) -> None:
        """Make a `start` in progress give up, and a `stop` in progress use SIGKILL on the second call.

        It only counts, so that a signal handler may call it at any moment.
        """
        self._interrupts += 1

    def kill(self, name: str) -> None:
        """SIGKILL a part and its whole process tree, as a crash of its machine would; the others go on."""
        process = self._process(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a part again on the port that it had, killing it first if it runs; returns when it is ready."""
        self.kill(name)
        self._bring_up([self._parts[name]])

    def logs(self, name: str) -> str:
        """All that a part has printed since this stack was started, over its restarts."""
        return self._log_path(name).read_text(errors="replace")

    def pids(self) -> dict[str, int]:
        """The root process of each part that runs."""
        return {name: process.pid for name, process in self._processes.items() if process.running}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bring_up(self, parts: Sequence[Part]) -> None:
        """Launch each part when what it needs is ready, and return when all are. Parts not given count as ready."""
        begun = time.monotonic()
        ready = set(self._parts) - {part.name for part in parts}
        starting: dict[str, _Start] = {}
        while len(ready) < len(self._parts):
            self._check()
            for part in parts:
                if part.name not in starting and set(part.needs) <= ready:
                    self._launch(part)
                    starting[part.name] = _Start(part, begun=time.monotonic())
            for name, start in starting.items():
                if name not in ready and self._is_ready(start, begun):
                    ready.add(name)
            time.sleep(_POLL_S)
        self._check()

    def _launch(self, part: Part) -> None:
        launch, log = part.prepare(), self._log_path(part.name)
        self._processes[part.name] = PartProcess(launch, log, self._console, self._on_exit)

    def _is_ready(self, start: "_Start", begun: float) -> bool:
        part, process = start.part, self._processes[start.part.name]
        now = time.monotonic()
        if part.ready(process):
            self._console.progress(f"{part.name}: ready after {now - begun:.0f} s")
            return True
        if now - start.begun > self.config.ready_timeout_s:
            what = f"was not ready within {self.config.ready_timeout_s:.0f} s"
            raise PartFailed(part.name, what, None, process.tail())
        if now - start.spoken >= _PROGRESS_EVERY_S:
            start.spoken = now
            self._console.progress(f"{part.name}: {part.doing} … {now - begun:.0f} s")
        return False

    def _check(self) -> None:
        if self._interrupts:
            raise StackInterrupted("Interrupted while starting.")
        if self.failure is not None:
            raise self.failure

    def _on_exit(self, process: PartProcess) -> None:
        if process.expected or self.failure is not None:
            return
        code = process.exit_code
        if self._up and self._has_replica(process.name):
            self._console.progress(
                f"{process.name} ended by itself with exit code {code}; its replicas go on"
            )
            return
        self.failure = PartFailed(
            process.name, f"ended by itself with exit code {code}", code, process.tail()
        )
        if self._up:
            self._up = False
            threading.Thread(target=self.stop, name="stack-stop").start()

    def _has_replica(self, name: str) -> bool:
        return any(
            process.running and self._parts[other].service == self._parts[name].service
            for other, process in self._processes.items()
            if other != name
        )

    def _end(self, processes: list[PartProcess]) -> None:
        for process in processes:
            process.stop()
        begun_with = self._interrupts
        for process in processes:
            while not process.wait(_POLL_S):
                if self._interrupts > max(begun_with, 1):
                    process.kill()

    def _keep_ray_logs(self) -> None:
        """Ray's directory goes with Ray; what its workers said may be what explains a crash."""
        kept, session = self.log_dir / "ray-session", self._processes["ray"].launch.remove_dir
        shutil.rmtree(kept, ignore_errors=True)
        if session is not None:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(session / "session_latest" / "logs", kept)

    def _process(self, name: str) -> PartProcess:
        if name not in self._processes:
            raise StackError(f"{name} is not a running part of this stack")
        return self._processes[name]

    def _log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def _hold_data_dir(self) -> None:
        """One stack per data directory, which holds one database: the lock goes with this process, however it ends."""
        try:
            self.config.data_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.config.data_dir / "stack.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StackError(
                f"Cannot write to {self.config.data_dir} ({error.strerror}): choose another --data-dir."
            ) from error
        self._held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._held.close()
            raise StackError(
                f"Another stack is using {self.config.data_dir}: stop it first, or choose another --data-dir."
            ) from error
