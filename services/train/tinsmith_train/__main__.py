"""`python -m tinsmith_train`: serve until stopped."""

import argparse
import sys
from pathlib import Path

from tinsmith_common.http import serve
from tinsmith_train.api import create_app
from tinsmith_train.config import TrainingConfig


def main() -> None:
    """Read the settings and serve. Exits with 1 when the base models cannot be loaded."""
    parser = argparse.ArgumentParser(prog="tinsmith_train", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON or YAML settings; the environment wins over it")
    config = TrainingConfig.load(parser.parse_args().config)
    sys.exit(serve(create_app(config), config.training_host, config.training_port))


if __name__ == "__main__":
    main()
