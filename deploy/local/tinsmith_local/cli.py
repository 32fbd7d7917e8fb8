"""The commands: `serve` keeps a stack in the foreground, `run -- COMMAND` lends one to a command."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tinsmith_local.config import StackConfig
from tinsmith_local.console import Console
from tinsmith_local.errors import StackError, StackInterrupted
from tinsmith_local.parts import local_environment
from tinsmith_local.process import ForegroundCommand, Launch
from tinsmith_local.stack import Stack

_POLL_S = 0.1
# A Ctrl-C has reached the command too: it may end by itself before it is told to.
_COMMAND_PATIENCE_S = 3.0
_FAILED = 1
_IMPOSSIBLE = 2
_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        stack = Stack(_config(options), Console(show_logs=options.verbose))
        _take_signals(stack)
        return _serve(stack) if options.command == "serve" else _run(stack, options.argv)
    except StackInterrupted:
        return _INTERRUPTED
    except StackError as error:
        print(f"tinsmith: {error}", file=sys.stderr)
        return _IMPOSSIBLE


def _serve(stack: Stack) -> int:
    try:
        stack.start()
        print(_welcome(stack), flush=True)
        while stack.up and not stack.interrupted:
            time.sleep(_POLL_S)
    finally:
        stack.stop()
    return _verdict(stack, 0)


def _run(stack: Stack, argv: list[str]) -> int:
    try:
        stack.start()
        env = {**stack.client_environment, **local_environment()}
        command = ForegroundCommand(Launch(name="command", command=argv, env=env))
        status = _attend(stack, command)
    finally:
        stack.stop()
    return _verdict(stack, _INTERRUPTED if stack.interrupted else status)


def _attend(stack: Stack, command: ForegroundCommand) -> int:
    """Wait for the command's end; end it when the stack has failed or the user wants to stop."""
    interrupted_at = None
    while (status := command.poll()) is None:
        now = time.monotonic()
        if stack.interrupted and interrupted_at is None:
            interrupted_at = now
        if not stack.up or (interrupted_at is not None and now - interrupted_at > _COMMAND_PATIENCE_S):
            return command.stop()
        time.sleep(_POLL_S)
    return status


def _verdict(stack: Stack, status: int) -> int:
    if stack.failure is None:
        return status
    print(f"tinsmith: {stack.failure}\nAll logs are in {stack.log_dir}.", file=sys.stderr)
    return _FAILED


def _welcome(stack: Stack) -> str:
    exports = "\n".join(f"    export {name}={value}" for name, value in stack.client_environment.items())
    return (
        f"\nTinsmith is ready. For the tinker SDK:\n\n{exports}\n\n"
        f"Logs are in {stack.log_dir}. Ctrl-C stops it.\n"
    )


def _take_signals(stack: Stack) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        stack.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _config(options: argparse.Namespace) -> StackConfig:
    defaults = StackConfig()
    tls = options.tls or options.tls_cert is not None or options.tls_key is not None
    return StackConfig(
        host=options.host,
        port=None if tls else options.port,
        tls_port=options.port if tls else None,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_name=options.tls_name,
        data_dir=options.data_dir,
        train_python=options.train_python or defaults.train_python,
        sample_python=options.sample_python or defaults.sample_python,
        access_log=options.access_log,
        sample_replicas=options.sample_replicas,
        ready_timeout_s=options.ready_timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinsmith_local", description="Tinsmith on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the stack until Ctrl-C")
    _add_options(serve, port="8000")
    serve.add_argument(
        "--quiet", dest="verbose", action="store_false", help="keep the parts' logs in their files"
    )
    run = commands.add_parser(
        "run", help="run a command with TINKER_BASE_URL and TINKER_API_KEY of a new stack"
    )
    _add_options(run, port="0")
    run.add_argument("--verbose", action="store_true", help="show the parts' logs too")
    run.add_argument("argv", nargs="+", metavar="-- COMMAND", help="the command and its arguments")
    return parser


def _add_options(parser: argparse.ArgumentParser, port: str) -> None:
    default_port = os.environ.get("PORT") or port
    parser.add_argument(
        "--port", type=int, default=default_port, help="of the gateway, 0 for any [%(default)s]"
    )
    parser.add_argument("--host", default="127.0.0.1", help="where the gateway listens [%(default)s]")
    parser.add_argument("--tls", action="store_true", help="HTTPS with HTTP/2 on that port instead of HTTP")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="certificate and intermediates [made here, with a CA]"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's private key")
    parser.add_argument("--tls-name", metavar="NAME", help="by which clients call the gateway [the --host]")
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".tinsmith"), help="for all that it keeps [%(default)s]"
    )
    parser.add_argument("--train-python", help="interpreter of the train service [this one]")
    parser.add_argument("--sample-python", help="interpreter of the sample service [.venv-sample/bin/python]")
    parser.add_argument(
        "--sample-replicas", type=int, default=1, metavar="N", help="sample services, with an engine each [1]"
    )
    parser.add_argument(
        "--access-log", action="store_true", help="let the gateway write DATA_DIR/gateway/access.log"
    )
    parser.add_argument(
        "--ready-timeout", type=float, default=600.0, help="seconds for a part to start [%(default)s]"
    )
