"""What a user can mend."""


class UserError(ValueError):
    """An error in what the user gave: a missing set, a wrong checkpoint, an unknown option.

    Command lines print its message as one line on stderr and exit with status 1.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
