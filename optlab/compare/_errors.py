"""The error of a comparison, and how it quotes others."""


class StudyError(ValueError):
    """A study that can't be made, or can't go on in its folder. The message names the argument and the way out."""


def first_line(error: BaseException) -> str:
    """An error of a user's function in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
