"""What a user can mend."""


class UserError(ValueError):
    """An error in what the user gave: a missing set, a wrong checkpoint, an unknown option.

    Command lines print its message as one line on stderr and exit with status 1.
    """
