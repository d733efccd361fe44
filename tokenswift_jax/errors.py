"""Errors that a person caused and can mend."""


class UserError(ValueError):
    """One line that says what is wrong and what would be right; commands print it and exit with status 2."""
