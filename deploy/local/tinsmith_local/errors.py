"""What can go wrong with the stack, each as one message that says what to do."""


class StackError(Exception):
    """The stack cannot start or go on; the message is for the person at the terminal."""


class StackInterrupted(StackError):
    """The stack was asked to stop while it was starting."""


class PartFailed(StackError):
    """A part of the stack ended by itself or never became ready.

    `part` is its name, `exit_code` its status (None when it was still running), `tail` its last log lines.
    """

    def __init__(self, part: str, what: str, exit_code: int | None, tail: list[str]) -> None:
        shown = [f"    {line}" for line in tail or ["(none)"]]
        super().__init__("\n".join([f"{part} {what}. Its last lines:", *shown]))
        self.part = part
        self.exit_code = exit_code
        self.tail = tail
