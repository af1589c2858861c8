"""Defines the exception that rewards raise. The exception has its own module to avoid import cycles."""


class RewardError(RuntimeError):
    """Raised if a reward function fails or does not return one finite number per response."""
