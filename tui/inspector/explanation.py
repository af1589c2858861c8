"""The help of the inspector, for readers without a background in reinforcement learning."""

from __future__ import annotations

EXPLANATION = """\
This screen shows how PPO changed the policy in one iteration, step by step. For a language model, a step is one token \
of a response. In an environment, a step is one action.

1. The policy acts: it samples a response, or plays an episode. The probability of each sampled token at that time is \
stored: this is the old policy.
2. A response gets one score, at its last token. Each token pays a small penalty (kl_coef*KL) for deviating from \
the reference model. Together they are the reward r.
3. The critic predicts, before each step, the sum of rewards that is still to come: V. The advantage A is the \
amount by which the rest went better than predicted. A > 0: the token becomes more likely. A < 0: it becomes less \
likely.
4. The update visits each step once per epoch. The ratio shows how far it has moved a token: 1.2 means 20 % more \
likely than when it was sampled, 0.8 means 20 % less likely.
5. The clip limits this: once A has pushed a ratio past the clip range (by default 0.8 to 1.2), the gradient of this \
token is zero (mark x, "cut"). The gradients of other tokens can also move a ratio out of the range. If the \
gradient of the token itself pulls it back, it is not cut (mark ▲ or ▼).

Below the text or the strips, a table shows the steps around the cursor. Every formula is filled with the numbers of \
the step under the cursor. Press [ to see the same step in each epoch of the update, w to try other \
options, and g for a text about each formula."""
CRITIC_EXPLANATION = """\
This screen shows how well the critic predicts. Before each step, it predicts the sum of rewards that is still to \
come: V. What really followed is known only at the end; it is called G.

1. The explained variance is 1 - var(G - V) / var(G): 1 means that V is right up to a constant (see \
calibration); 0 is no better than a constant, and a negative number is worse. Early tokens are hard to predict, \
because most of the response is unknown.
2. Each number has a 95 % interval. The steps of one response have nearly the same G, so responses are counted, not \
steps.
3. Calibration: among steps with similar V, the mean of G should be close to V. If V is outside the interval, the \
critic is too optimistic or too pessimistic there. By chance alone, about one group in twenty is outside.
4. The last table shows one sample. Select it with the up and down keys, and the step with the left and right keys."""
KL_EXPLANATION = """\
This screen computes all estimates of the KL between the policy and the reference model on the same tokens. d is the \
log-prob of a token under the policy minus that under the reference.

1. k1 is d. Single values can be negative. |k1| is never negative, but its mean is too large.
2. k2 is d^2 / 2, and k3 is exp(-d) - 1 + d. Both are never negative. full is the exact KL, \
summed over all tokens of the vocabulary.
3. The means of k1 and k3 equal the KL only if the policy itself samples the tokens. full does not depend on the \
sampled token. The second table shows how far each mean moves if a truncated sampler (top-k, top-p) draws the tokens.
4. If the run has several rewards, a table shows them by the square root of the KL. A reward with weight 0 is not \
trained. If the trained reward still rises and the other one does not, this is a sign that the policy \
exploits the reward model."""
QUANTITIES = {  # name -> meaning, the most important first
    "A": "> 0: the rest went better than the critic predicted; < 0: worse",
    "V": "the critic's prediction of the sum of the rewards still to come",
    "ratio": "new / old probability; A pushes it only up to the clip range",
    "r": "reward; of a token: the score (at the last one) - kl_coef*KL",
    "delta": "what this step alone changed; V' is V after it, 0 at the end",
    "KL": "> 0: likelier than in the reference model; this costs reward",
    "return": "what the critic should have predicted: its training target",
    "A used": "A, scaled to mean 0 and variance 1 if the run's options say so",
    "loss": "what the update minimizes; clip: the ratio limited to its range",
    "d loss": "slope of the policy loss; < 0: likelier; > 0: less likely; 0: cut",
    "share": "part of this step in the loss of the minibatch or iteration",
    "log old": "log-probability of the step when it was sampled",
    "log new": "the same, in the shown epoch or after the update",
    "log ref": "the same, under the reference model (frozen copy from the start)",
    "V now": "the prediction of the critic while it is trained",
    "full KL": "the exact KL of the step, over all tokens of the vocabulary",
    "entropy": "how undecided the policy is: 0 = certain",
}
LEGEND: tuple[tuple[str, dict[str, str]], ...] = (
    ("Quantities", QUANTITIES),
    (
        "Signs",
        {
            "x": "cut: the clip makes the gradient of this step zero",
            "▲ ▼ (^ v)": "the ratio is above or below the clip range, but the gradient is not cut",
            "A..D, a..d": "without colors: the heat above and below the middle; D and d are the strongest",
            "⏎ ␍ ⇥ ␛": "line break, carriage return, tab and escape character in a token",
        },
    ),
)
