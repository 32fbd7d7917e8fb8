"""`python -m tinsmith_sample`: serve until stopped."""

import argparse
import sys
from pathlib import Path

from tinsmith_common.http import serve
from tinsmith_sample.api import create_app
from tinsmith_sample.config import SamplingConfig


def main() -> None:
    """Read the settings and serve. Exits with 1 when an engine does not come up."""
    parser = argparse.ArgumentParser(prog="tinsmith_sample", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON or YAML settings; the environment wins over it")
    config = SamplingConfig.load(parser.parse_args().config)
    sys.exit(serve(create_app(config), config.sampling_host, config.sampling_port))


if __name__ == "__main__":
    main()
