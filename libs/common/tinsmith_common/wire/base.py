"""What all wire models share."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """A body on the wire. Unknown fields are ignored; `model_`-names are the protocol's own."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
