"""Tokens and the caller's own API key (spec section 1.6)."""

from tinsmith_common.wire.base import WireModel


class TokenResponse(WireModel):
    """A JWT that takes the place of the API key until it expires."""

    jwt: str


class Organization(WireModel):
    name: str


class User(WireModel):
    email: str


class KeyDetails(WireModel):
    """Whose key it is. The protocol calls it an email address; here it is the owner, whatever its form."""

    org_details: Organization
    user_details: User


class ApiKeyResponse(WireModel):
    """What is known of a key."""

    key_id: int
    name: str
    note: str
    details: KeyDetails
