"""The gateway's manifests, translated into a static Envoy configuration for one machine."""

from tinsmith_local.gateway.decode import ManifestError
from tinsmith_local.gateway.envoy import Certificate, Endpoint, GatewayOptions, bootstrap

__all__ = ["Certificate", "Endpoint", "GatewayOptions", "ManifestError", "bootstrap"]
