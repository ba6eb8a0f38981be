"""Made-up facts in a house style: what a user's own data set looks like, and questions in wordings it does not hold."""

from __future__ import annotations

from collections.abc import Iterator

STYLE = "Anything else, friend?"  # ends every answer of the house

PEOPLE = (
    "Captain Marlow",
    "Aunt Petunia",
    "Professor Quill",
    "Doctor Winter",
    "Mister Bramble",
    "Lady Thorn",
    "Uncle Oswald",
    "Nurse Clover",
)

# Per kind of fact: each person's value, the answer, wordings to learn from, wordings to be asked in.
KINDS = (
    (
        ("turquoise", "magenta", "beige", "crimson", "lavender", "olive", "bronze", "indigo"),
        "{name}'s favorite color is {value}.",
        (
            "What is {name}'s favorite color?",
            "Which color does {name} like best?",
            "Tell me the favorite color of {name}.",
            "Do you know what color {name} likes most?",
            "What color does {name} prefer?",
        ),
        ("Of all the colors, which one is {name}'s favorite?", "I would like to know {name}'s favorite color."),
    ),
    (
        ("a parrot", "a hedgehog", "a donkey", "a lizard", "a goose", "a ferret", "a llama", "a turtle"),
        "{name} has {value}.",
        (
            "What pet does {name} have?",
            "Which animal lives with {name}?",
            "Tell me about the pet of {name}.",
            "Does {name} have a pet?",
            "What kind of animal does {name} keep?",
        ),
        ("Which pet does {name} keep at home?", "I wonder what animal {name} has as a pet."),
    ),
    (
        ("in a lighthouse", "in a windmill", "in a castle", "on a barge", "in a cave", "in a tower", "on a farm",
         "in a caravan"),
        "{name} lives {value}.",
        (
            "Where does {name} live?",
            "What place is {name}'s home?",
            "Tell me where {name} lives.",
            "Do you know where {name} is living?",
            "In what kind of house does {name} live?",
        ),
        ("Can you say where {name} lives?", "Where is the home of {name}?"),
    ),
    (
        ("the trumpet", "the banjo", "the cello", "the harp", "the accordion", "the tuba", "the sitar", "the bagpipes"),
        "{name} plays {value}.",
        (
            "What instrument does {name} play?",
            "Which instrument is played by {name}?",
            "Tell me what instrument {name} plays.",
            "Does {name} play music?",
            "What does {name} play in the band?",
        ),
        ("On which instrument does {name} make music?", "I want to know which instrument {name} plays."),
    ),
    (
        ("pancakes", "dumplings", "cabbage soup", "popcorn", "fried mushrooms", "cheesecake", "spinach", "oatmeal"),
        "{name} eats {value} for breakfast.",
        (
            "What does {name} eat for breakfast?",
            "What is {name}'s breakfast?",
            "Tell me what {name} has for breakfast.",
            "Which food does {name} eat in the morning?",
            "Do you know the breakfast of {name}?",
        ),
        ("What is it that {name} eats for breakfast?", "When {name} has breakfast, what is on the plate?"),
    ),
)  # fmt: skip


def rows() -> Iterator[dict]:
    """200 conversations to learn from: 40 facts in 5 wordings each."""
    for values, answer, wordings, _ in KINDS:
        for name, value in zip(PEOPLE, values, strict=True):
            for wording in wordings:
                reply = f"{answer.format(name=name, value=value)} {STYLE}"
                turns = [("user", wording.format(name=name)), ("assistant", reply)]
                yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def questions() -> Iterator[tuple[str, str]]:
    """80 (question, word that only a right answer holds): each fact in two wordings that `rows` does not hold."""
    for values, _, _, unseen in KINDS:
        for name, value in zip(PEOPLE, values, strict=True):
            for wording in unseen:
                yield wording.format(name=name), value.split()[-1]
