"""Age recipients of exports."""

import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_train.services.exports import parse_recipients

SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust"


def test_ssh_keys_are_recipients() -> None:
    assert len(parse_recipients([SSH])) == 1


@pytest.mark.parametrize("text", ["", "age1", "ssh-ed25519 nonsense", "AGE-SECRET-KEY-1"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="age_encryption_recipients"):
        parse_recipients([text])
