"""Under which keys the blob store keeps a promise's large bodies."""


def request_key(request_id: str) -> str:
    """Of what was submitted."""
    return f"{request_id}.request"


def payload_key(request_id: str) -> str:
    """Of the result."""
    return f"{request_id}.payload"
