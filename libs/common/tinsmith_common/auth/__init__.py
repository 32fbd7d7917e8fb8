"""Who calls: API keys, tokens, and the principal behind them."""

from tinsmith_common.auth.authenticator import KEY_AGE_S, Authenticator
from tinsmith_common.auth.keys import CONFIGURED_KEY, DEFAULT_OWNER, KEY_PREFIX, Principal, digest, new_key
from tinsmith_common.auth.repository import ApiKey, ApiKeys
from tinsmith_common.auth.tokens import Tokens

__all__ = [
    "CONFIGURED_KEY",
    "DEFAULT_OWNER",
    "KEY_AGE_S",
    "KEY_PREFIX",
    "ApiKey",
    "ApiKeys",
    "Authenticator",
    "Principal",
    "Tokens",
    "digest",
    "new_key",
]
