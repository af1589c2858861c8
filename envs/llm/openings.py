"""The prompts of the task `openings`: neutral openings of sentences about films, food, work and travel."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FILMS = _words("film documentary western musical series concert song book cartoon ending story show")
_FOOD = _words("soup pizza bread salad coffee cake rice fish pasta breakfast dinner dessert")
_WORK = _words("meeting report project training interview office schedule review team computer talk plan")
_TRAVEL = _words("hotel train flight beach museum city tour weather room bus bridge street")

_FRAMES = {  # no opening contains a word of the lexicon of VADER
    _FILMS: (
        "The {} we saw last night was",
        "This {} is",
        "I told my sister that the {} was",
        "After an hour, the {} became",
        "People who know the first {} say that this one",
        "When the {} was over, we",
        "My review of the {}: it is",
        "To me, the {} felt",
        "The {} begins in a small town and",
        "Everyone talks about the new {} because",
        "The children watched the {} and",
        "The {} left us",
    ),
    _FOOD: (
        "The {} at lunch was",
        "My father made {} and it",
        "The {} here tastes",
        "We ordered the {} and",
        "I tried the {} because",
        "The waiter brought the {}, which looked",
        "Our {} came after half an hour and was",
        "My neighbour says that the {} is",
        "The smell of the {} was",
        "With the {}, we had",
        "I cooked {} for my guests, and they",
        "The {} from yesterday was",
    ),
    _WORK: (
        "The {} at work today was",
        "My boss thinks that the {} is",
        "We finished with the {}, and it was",
        "The new {} makes us",
        "During the {}, everybody",
        "I wrote to the client that the {} was",
        "The first day with the {} was",
        "Because of the {}, my week was",
        "Our {} is",
        "In the end, the {} turned out",
        "My colleagues find the {}",
        "After the {}, I felt",
    ),
    _TRAVEL: (
        "The {} on our trip was",
        "When we came to the {}, it was",
        "In the evening, the {} looked",
        "The {} in this country is",
        "I wrote a postcard about the {}, which was",
        "Our guide said that the {} was",
        "For us, the {} was",
        "From the window, the {} seemed",
        "The {} was different from the pictures: it was",
        "My parents remember the {} as",
        "Two days later, the {} was",
        "The other guests said that the {} was",
    ),
}


def all_openings() -> list[str]:
    """Return all 576 openings, in a fixed order."""
    return [frame.format(noun) for nouns, frames in _FRAMES.items() for frame in frames for noun in nouns]
