"""The error of a reward, apart so that everything about rewards can import it."""


class RewardError(RuntimeError):
    """A reward that failed, or gave anything but one finite number per response; says on which prompt and response."""
