"""`python -m tinsmith_sample`: serve until stopped."""

import argparse
import sys
from pathlib import Path

import uvicorn

from tinsmith_sample.api import create_app
from tinsmith_sample.config import load_config

# Heartbeats come every 10 s: uvicorn's 5 s would close every connection between two of them.
_KEEP_ALIVE_S = 120
_GRACE_S = 5


def main() -> None:
    """Read the settings and run uvicorn. Exits with 1 when an engine does not come up."""
    parser = argparse.ArgumentParser(prog="tinsmith_sample", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON or YAML settings; the environment wins over it")
    config = load_config(parser.parse_args().config)
    app = create_app(config)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.sampling_host,
            port=config.sampling_port,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = server.should_exit = True

    app.state.runtime.on_failed_start = give_up
    server.run()
    sys.exit(1 if failed or not server.started else 0)


if __name__ == "__main__":
    main()
