"""Errors that a person caused and can mend."""


class UserError(ValueError):
    """One line that says what is wrong and what would be right; commands print it and exit with status 2."""


def check_whole(name: str, value: object, low: int) -> None:
    """Raises UserError unless `value` is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {low}")
