"""Errors that say which parameter is to be changed, and have a code that clients look for."""

from tinsmith_common.errors import InvalidInput, NotFound


class WrongParameter(InvalidInput):
    """A parameter that cannot be what it is, or is not supported."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModel(NotFound):
    """There is no model of that name for this caller."""

    param = "model"
    code = "model_not_found"
