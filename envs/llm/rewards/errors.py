"""The exception that rewards raise, in its own module to avoid import cycles."""


class RewardError(RuntimeError):
    """Raised if a reward fails or does not return one finite number per response."""
