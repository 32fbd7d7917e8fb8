"""What tests of accounts do as operators and as plain HTTP clients."""

import os
import subprocess
import sys

import httpx

from tinsmith_local import Stack


def keys(stack: Stack, *arguments: str) -> str:
    """Run the keys command as an operator does, while the stack runs. Answers what it printed."""
    environment = {**os.environ, "METADATA_DIR": str(stack.config.data_dir / "metadata")}
    command = [sys.executable, "-m", "tinsmith_common.keys", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def http(stack: Stack, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{stack.base_url}/api/v1", headers={"X-API-Key": key}, timeout=60)
