"""The gateway's manifests, translated into a static Envoy configuration for one machine."""

from tinsmith_local.gateway.decode import ManifestError
from tinsmith_local.gateway.envoy import Endpoint, GatewayOptions, bootstrap

__all__ = ["Endpoint", "GatewayOptions", "ManifestError", "bootstrap"]
