"""Tinsmith on one machine: Ray, both services and Envoy, routed by the manifests that a cluster uses.

with Stack(StackConfig(port=0, data_dir=folder)) as stack:
    client = tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key)
"""

from tinsmith_local.config import StackConfig
from tinsmith_local.console import Console
from tinsmith_local.errors import PartFailed, StackError, StackInterrupted
from tinsmith_local.stack import Stack

__all__ = ["Console", "PartFailed", "Stack", "StackConfig", "StackError", "StackInterrupted"]
