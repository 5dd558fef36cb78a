"""The one error type a user is meant to read."""


class LoomError(Exception):
    """Something the user can put right. The message is one sentence: which file or field, what was found, what is allowed, what to do."""


class NonFiniteError(LoomError):
    """A number that must be finite is not; nothing was written from it."""
