"""The HTTP shell of a service: what every app answers, and how it fails."""

from tinsmith_common.http.application import install_http
from tinsmith_common.http.dependencies import Caller, SharedStores
from tinsmith_common.http.server import give_up, serve

__all__ = ["Caller", "SharedStores", "give_up", "install_http", "serve"]
