"""Command-line options out of a settings dataclass: `--learning-rate` sets `learning_rate`."""

import argparse
from dataclasses import fields
from typing import TypeVar

Config = TypeVar("Config")


def parse_into(config_class: type[Config], description: str | None) -> Config:
    """The settings that the command line asks for; `--help` lists them with their defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = config_class()
    for option in fields(config_class):  # pyright: ignore[reportArgumentType]
        default = getattr(defaults, option.name)
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar=type(default).__name__.upper(),
            help=f"{option.metadata['help']} [%(default)s]",
        )
    return config_class(**vars(parser.parse_args()))
