"""`python -m tinsmith_train`: serve until stopped."""

import argparse
from pathlib import Path

import uvicorn

from tinsmith_train.api import create_app
from tinsmith_train.config import load_config

# Heartbeats come every 10 s: uvicorn's 5 s would close every connection between two of them.
_KEEP_ALIVE_S = 120
_GRACE_S = 5


def main() -> None:
    """Read the settings and run uvicorn."""
    parser = argparse.ArgumentParser(prog="tinsmith_train", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON or YAML settings; the environment wins over it")
    config = load_config(parser.parse_args().config)
    uvicorn.run(
        create_app(config),
        host=config.training_host,
        port=config.training_port,
        log_config=None,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main()
