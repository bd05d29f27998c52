"""Who lives in the demo's world, and how they show and name what they feel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """The words that fill an event's slots: subject, object, possessive and the past tense of "to be"."""

    subject: str
    object: str
    possessive: str
    was: str = "was"


YOU = Person("you", "you", "your", "were")
SHE = Person("she", "her", "her")
HE = Person("he", "him", "his")

NAMES: dict[str, Person] = {
    **dict.fromkeys(("Mia", "Anna", "Lily", "Ella", "Nora", "Rosa", "Ivy", "Clara", "Ada", "Jane"), SHE),
    **dict.fromkeys(("Tom", "Ben", "Leo", "Max", "Sam", "Paul", "Oscar", "Finn", "Hugo", "Carl"), HE),
}

NOUNS: dict[str, tuple[str, ...]] = {
    "happiness": (*["happiness"] * 6, "joy", "delight"),
    "sadness": (*["sadness"] * 6, "sorrow", "grief"),
    "anger": (*["anger"] * 6, "rage", "fury"),
    "fear": (*["fear"] * 6, "terror", "dread"),
    "disgust": (*["disgust"] * 6, "revulsion", "loathing"),
    "surprise": (*["surprise"] * 6, "amazement", "astonishment"),
}

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "happiness": ("happy", "happy", "glad", "joyful"),
    "sadness": ("sad", "sad", "unhappy", "gloomy"),
    "anger": ("angry", "angry", "furious", "mad"),
    "fear": ("afraid", "scared", "frightened", "terrified"),
    "disgust": ("disgusted", "disgusted", "revolted", "repelled"),
    "surprise": ("surprised", "surprised", "astonished", "amazed"),
}

REACTIONS: dict[str, tuple[str, ...]] = {
    "happiness": (
        "{I} smiled from ear to ear",
        "{I} laughed and clapped",
        "{I} hummed a merry tune",
        "{my} eyes shone",
    ),
    "sadness": (
        "{I} wept quietly",
        "tears ran down {my} cheeks",
        "{I} hung {my} head",
        "{I} sighed and cried",
    ),
    "anger": (
        "{I} clenched {my} fists",
        "{I} shouted and stamped",
        "{my} face turned red",
        "{I} slammed the door",
    ),
    "fear": ("{I} trembled and hid", "{my} knees shook", "{I} ran for {my} life", "{my} heart pounded"),
    "disgust": (
        "{I} held {my} nose",
        "{I} gagged and turned away",
        "{my} stomach turned",
        "{I} spat and washed {my} mouth",
    ),
    "surprise": (
        "{I} stared with an open mouth",
        "{I} gasped and blinked",
        "{I} rubbed {my} eyes",
        "{my} jaw dropped",
    ),
}

# {N} is a noun, {A} an adjective of the emotion, {name} the person's name.
FEELINGS: tuple[str, ...] = (
    "{name} was filled with {N}",
    "{my} heart was full of {N}",
    "what {I} felt was {N}",
    "all {I} could feel was {N}",
    "a wave of {N} came over {me}",
    "{I} could not hide {my} {N}",
    "there was {N} in {my} voice",
    "{I} was overcome with {N}",
    "it was a moment of {N}",
    "the look on {my} face was one of {N}",
    "it filled {me} with {N}",
    "pure {N} took hold of {me}",
    "for {name} it was {N}, nothing but {N}",
    "{I} spoke of {my} {N} for days",
    "everyone saw the {N} of {name}",
    "{I} told {my} sister that it was {N}",
    "{N} was all that {I} knew then",
    "{I} said that what people feel then is {N}",
    "{I} told {my} sister: this is {N}",
    "{I} called out: how strong {N} is",
    "{I} wrote that the word for it is {N}",
    "{N} is what {I} remembered of that hour",
    "{I} felt very {A}",
    "{I} was so {A}",
    "{name} looked {A}",
    "{I} had never been so {A}",
    "it made {me} {A}",
    "{name} was {A} for the rest of the day",
    "{I} said: I am {A}",
    "anyone would be {A} then",
)
