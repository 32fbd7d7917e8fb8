"""The exception tree of Tinsmith.

Every error that may reach a client derives from `TinsmithError` and says three things about itself:
who can mend it (`category`), which HTTP status a direct answer carries (`http_status`), and, in its
message, what was wrong and what to change. Operations answered through a future use the category only.

To add one: derive from the class whose category fits, set `http_status`, keep the constructor to a single
message (exceptions cross process borders in Ray and must stay picklable).
"""

from typing import ClassVar, Literal

Category = Literal["user", "server", "unknown"]


class TinsmithError(Exception):
    """Base of all errors a client may see."""

    category: ClassVar[Category] = "server"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(TinsmithError):
    """The request is understood and can never succeed as it is."""

    category = "user"
    http_status = 400


class Unauthorized(InvalidInput):
    """No credential, or one that is not known here."""

    http_status = 401


class InvalidToken(Unauthorized):
    """A token that is not valid, or not any more. Clients exchange their key for another one and try again."""


class Forbidden(InvalidInput):
    """A credential that does not reach this far."""

    http_status = 403


class NotFound(InvalidInput):
    """The named thing does not exist, or belongs to somebody else."""

    http_status = 404


class NameConflict(InvalidInput):
    """The name is taken. Fails through the future: a direct 409 would be retried for minutes."""

    http_status = 409


class Conflict(InvalidInput):
    """The thing is already in the state asked for. Clients of the protocol retry this for five minutes."""

    http_status = 409


class PromiseLost(TinsmithError):
    """The promise is not known any more; a sampling client resubmits on this."""

    http_status = 410


class PayloadTooLarge(InvalidInput):
    """The body is over the configured limit."""

    http_status = 413


class Overloaded(TinsmithError):
    """Too much is queued; the same request may be sent again later."""

    http_status = 429


class Leaving(TinsmithError):
    """This process is about to end and takes no work; another one does, or it does itself when it is back."""

    http_status = 503


class TookTooLong(TinsmithError):
    """An answer that a caller waits for did not come in time; the work goes on."""

    http_status = 408


class EngineFailure(TinsmithError):
    """An engine or its process failed while doing valid work."""


class StoreUnusable(TinsmithError):
    """The shared store cannot be opened, or is not of this version."""
