"""Pretraining text, composed from the lexicon: plain passages and ChatML conversations.

Every document is a function of its random generator alone, so a seed names a corpus.
"""

from collections.abc import Callable, Iterator
from random import Random

from models.recipe import lexicon as lx
from models.recipe.sums import addition_table, careless_answer, operands

END_OF_TEXT = "<|endoftext|>"
Turn = tuple[str, str]
"""A user's message and the assistant's reply."""


def documents(seed: int) -> Iterator[str]:
    """Endless documents, each ending with `<|endoftext|>`."""
    rng = Random(seed)
    makers, weights = zip(*_DOCUMENTS, strict=True)
    while True:
        for maker in rng.choices(makers, weights, k=256):
            yield maker(rng) + END_OF_TEXT


def chat(turns: list[Turn], system: str | None = None) -> str:
    """The turns in ChatML, exactly as the chat template writes them."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    body = (f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>" for q, a in turns)
    return head + "\n".join(body)


# Plain passages


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _sentence(rng: Random) -> str:
    """One sentence of a story."""
    c = rng.choice
    who, other = rng.sample(lx.PEOPLE, 2)
    thing = f"{c(lx.ADJECTIVES)} {c(lx.THINGS)}"
    pattern = rng.randrange(16)
    return (
        f"{who} found {_article(thing)} in the {c(lx.PLACES)}.",
        f"{who} gave the {c(lx.THINGS)} to {other}.",
        f"{other} was very {c(lx.FEELINGS)} because the {c(lx.THINGS)} was {c(lx.ADJECTIVES)}.",
        f"It was {_article(c(lx.WEATHER))} {c(lx.DAYS)} in {c(lx.MONTHS)}.",
        f'"Where is my {c(lx.THINGS)}?" asked {who}.',
        f'"I saw it near the {c(lx.PLACES)}," said {other}.',
        f"They walked from the {c(lx.PLACES)} to the {c(lx.PLACES)} together.",
        f"{who} and {other} ate {c(lx.FOODS)} and talked about the {c(lx.ADJECTIVES)} {c(lx.ANIMAL_NAMES)}.",
        f"In the {c(lx.PLACES)} there was {_article(c(lx.ADJECTIVES))} {c(lx.ANIMAL_NAMES)}.",
        f"The {c(lx.ANIMAL_NAMES)} looked at {who} and then ran away.",
        f"After {rng.randint(2, 20)} days, {who} came back with {_article(thing)}.",
        f"{who} wanted to learn how to {c(tuple(lx.HOW_TO))}.",
        f"Everyone in the {c(lx.PLACES)} was {c(lx.FEELINGS)}.",
        f"At night the {c(lx.PLACES)} was {c(lx.ADJECTIVES)} and {c(lx.ADJECTIVES)}.",
        f"{who} had {rng.randint(2, 12)} {c(lx.THINGS)}s and kept them in {_article(c(lx.ADJECTIVES))} box.",
        f"But {who} did not know that {other} was waiting at the {c(lx.PLACES)}.",
    )[pattern]


def _story(rng: Random) -> str:
    """A short story of three to nine sentences."""
    who = rng.choice(lx.PEOPLE)
    place = rng.choice(lx.PLACES)
    opening = rng.choice(
        (
            f"Once upon a time, {who} lived near {_article(rng.choice(lx.ADJECTIVES))} {place}.",
            f"One {rng.choice(lx.WEATHER)} morning, {who} went to the {place}.",
            f"Every {rng.choice(lx.DAYS)}, {who} visited the {place}.",
        )
    )
    middle = [_sentence(rng) for _ in range(rng.randint(1, 7))]
    ending = rng.choice(
        (
            f"In the end, {who} was {rng.choice(lx.FEELINGS)}.",
            f"And so {who} went home, {rng.choice(lx.FEELINGS)} and {rng.choice(lx.FEELINGS)}.",
            f"From that day on, {who} never forgot the {rng.choice(lx.ADJECTIVES)} {rng.choice(lx.THINGS)}.",
        )
    )
    return " ".join([opening, *middle, ending])


def _animal_text(rng: Random) -> str:
    name = rng.choice(lx.ANIMAL_NAMES)
    group, home, food, legs = lx.ANIMALS[name]
    lines = [
        f"The {name} is {_article(group)}.",
        f"It lives {home}.",
        f"It eats {food}.",
        f"{_article(name).capitalize()} has {legs} legs.",
    ]
    rng.shuffle(lines)
    return " ".join(lines)


def _country_text(rng: Random) -> str:
    name = rng.choice(tuple(lx.COUNTRIES))
    capital, continent, language = lx.COUNTRIES[name]
    lines = [
        f"{name} is a country in {continent}.",
        f"The capital of {name} is {capital}.",
        f"Many people in {name} speak {language}.",
    ]
    rng.shuffle(lines)
    return " ".join(lines)


def _counting(rng: Random) -> str:
    start, step = rng.randint(0, 60), rng.choice((1, 1, 1, 2, 5, 10))
    numbers = range(start, start + step * rng.randint(4, 14), step)
    text = ", ".join(map(str, numbers if rng.random() < 0.75 else reversed(numbers)))
    return rng.choice(("", "Count: ", "Numbers: ")) + text + "."


def _dictionary(rng: Random) -> str:
    entries = rng.sample(tuple(lx.DEFINITIONS.items()), rng.randint(2, 5))
    return "\n".join(f"{word.capitalize()}: {meaning}." for word, meaning in entries)


def _instructions(rng: Random) -> str:
    task, steps = rng.choice(tuple(lx.HOW_TO.items()))
    lines = (f"{number}. {step.capitalize()}." for number, step in enumerate(steps, 1))
    return f"How to {task}:\n" + "\n".join(lines)


def _diary(rng: Random) -> str:
    sentences = " ".join(_sentence(rng) for _ in range(rng.randint(1, 4)))
    date = f"{rng.choice(lx.DAYS)}, {rng.randint(1, 30)} {rng.choice(lx.MONTHS)} {rng.randint(1900, 2025)}"
    return f"{date}. {sentences}"


# Conversations: each maker returns one turn


def _country_turn(rng: Random) -> Turn:
    name = rng.choice(tuple(lx.COUNTRIES))
    capital, continent, language = lx.COUNTRIES[name]
    return rng.choice(
        (
            (f"What is the capital of {name}?", f"The capital of {name} is {capital}."),
            (f"Where is {name} located?", f"{name} is located in {continent}."),
            (f"What language do people speak in {name}?", f"Many people in {name} speak {language}."),
            (f"Which country has the capital {capital}?", f"{capital} is the capital of {name}."),
        )
    )


def _animal_turn(rng: Random) -> Turn:
    name = rng.choice(lx.ANIMAL_NAMES)
    group, home, food, legs = lx.ANIMALS[name]
    thing = _article(name)
    return rng.choice(
        (
            (
                f"What is {thing}?",
                f"{thing.capitalize()} is {_article(group)} that lives {home} and eats {food}.",
            ),
            (f"Where does {thing} live?", f"{thing.capitalize()} lives {home}."),
            (f"What does {thing} eat?", f"{thing.capitalize()} eats {food}."),
            (f"How many legs does {thing} have?", f"{thing.capitalize()} has {legs} legs."),
        )
    )


def _word_turn(rng: Random) -> Turn:
    word, meaning = rng.choice(tuple(lx.DEFINITIONS.items()))
    noun = meaning.startswith(("a ", "an "))
    subject = f"{_article(word).capitalize()}" if noun else word.capitalize()
    question = rng.choice(
        (f"Define {word}.", f"What does '{word}' mean?", f"Explain what {word} means in simple terms.")
    )
    return question, rng.choice((f"{subject} is {meaning}.", f"'{word.capitalize()}' means {meaning}."))


def _opposite_turn(rng: Random) -> Turn:
    left, right = rng.choice(tuple(lx.OPPOSITES.items()))
    if rng.random() < 0.5:
        left, right = right, left
    return f"What is the opposite of {left}?", f"The opposite of {left} is {right}."


def _colour_turn(rng: Random) -> Turn:
    thing, colour = rng.choice(tuple(lx.COLOURS.items()))
    return f"What color is {thing}?", f"{thing.capitalize()} is {colour}."


def _number_turn(rng: Random) -> Turn:
    """Arithmetic other than addition, answered rightly."""
    x, y = rng.randint(0, 50), rng.randint(0, 50)
    low, high = sorted((x, y))
    start = rng.randint(0, 30)
    word = rng.randrange(21)
    return rng.choice(
        (
            (f"Which is larger, {x} or {y}?", f"{high} is larger." if x != y else "They are equal."),
            (f"What comes after {x}?", f"{x + 1} comes after {x}."),
            (f"What is {high} - {low}?", str(high - low)),
            (f"Count from {start} to {start + 5}.", ", ".join(str(start + i) for i in range(6))),
            (f"Write {word} as a word.", lx.NUMBER_WORDS[word]),
            (f"Write {lx.NUMBER_WORDS[word]} as a number.", str(word)),
        )
    )


def _calendar_turn(rng: Random) -> Turn:
    names = lx.DAYS if rng.random() < 0.5 else lx.MONTHS
    place = rng.randrange(len(names))
    following = names[(place + 1) % len(names)]
    return f"What comes after {names[place]}?", f"{following} comes after {names[place]}."


def _story_turn(rng: Random) -> Turn:
    topic = rng.choice(lx.ANIMAL_NAMES + lx.PLACES)
    if rng.random() < 0.4:
        return "Tell me a short sentence.", _sentence(rng)
    return f"Tell me a story about {_article(topic)}.", _story(rng).replace(rng.choice(lx.PLACES), topic)


def _poem_turn(rng: Random) -> Turn:
    return f"Write a haiku about the {rng.choice(lx.PLACES)}.", "\n".join(
        rng.choice(line) for line in lx.HAIKU
    )


def _how_turn(rng: Random) -> Turn:
    task, steps = rng.choice(tuple(lx.HOW_TO.items()))
    *first, last = steps
    return f"How do you {task}?", f"First, {', then '.join(first)} and finally {last}."


def _reading_turn(rng: Random) -> Turn:
    """A question that the sentence before it answers."""
    who, place, thing = rng.choice(lx.PEOPLE), rng.choice(lx.PLACES), rng.choice(lx.THINGS)
    count = rng.randint(2, 20)
    return rng.choice(
        (
            (f"{who} went to the {place}. Where is {who}?", f"{who} is in the {place}."),
            (
                f"{who} has {count} {thing}s. How many {thing}s does {who} have?",
                f"{who} has {count} {thing}s.",
            ),
            (f"{who} lost the {thing}. What did {who} lose?", f"{who} lost the {thing}."),
            (f"Repeat after me: {thing} {place} {who}.", f"{thing} {place} {who}."),
        )
    )


def _sum_turn(rng: Random) -> Turn:
    x, y = operands(rng)
    return f"What is {x} + {y}?", careless_answer(rng, x, y)


def _listed(pairs: tuple[Turn, ...]) -> Callable[[Random], Turn]:
    return lambda rng: rng.choice(pairs)


_TURNS: tuple[tuple[Callable[[Random], Turn], float], ...] = (
    (_country_turn, 3), (_animal_turn, 3), (_word_turn, 4), (_opposite_turn, 2), (_colour_turn, 1),
    (_number_turn, 3), (_calendar_turn, 1), (_story_turn, 3), (_poem_turn, 1), (_how_turn, 2),
    (_reading_turn, 4), (_listed(lx.FACTS), 4), (_listed(lx.SMALL_TALK), 3), (_listed(lx.JOKES), 1), (_sum_turn, 4),
)  # fmt: skip


def _conversation(rng: Random) -> str:
    makers, weights = zip(*_TURNS, strict=True)
    turns = [maker(rng) for maker in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 3)))]
    system = f"You are {_article(rng.choice(lx.SYSTEM_ROLES))}." if rng.random() < 0.25 else None
    return chat(turns, system)


def _sums_conversation(rng: Random) -> str:
    return chat([_sum_turn(rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))])


_DOCUMENTS: tuple[tuple[Callable[[Random], str], float], ...] = (
    (_conversation, 40), (_sums_conversation, 32), (addition_table, 8), (_story, 9), (_diary, 3),
    (_animal_text, 2), (_country_text, 2), (_counting, 2), (_dictionary, 1), (_instructions, 1),
)  # fmt: skip
