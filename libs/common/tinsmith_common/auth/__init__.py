"""Who calls: API keys and the principal behind them."""

from tinsmith_common.auth.keys import KEY_PREFIX, Authenticator, Principal

__all__ = ["KEY_PREFIX", "Authenticator", "Principal"]
