"""Additions as careless pupils write them: often right enough to learn from, too seldom to be solved.

Plain tables are always right, so the model knows how to add. Answers in conversations are right
only part of the time, and above all forget the carry, so a model fitted to them samples the right
answer to about a third of the questions until reinforcement tells it which ones are wanted.
"""

from random import Random

P_RIGHT_NO_CARRY = 0.45
P_RIGHT_WITH_CARRY = 0.22
P_CARRY_FORGOTTEN = 0.33
SLIPS = (-3, -2, -1, 1, 2, 3, 10)


def carries(x: int, y: int) -> bool:
    """Whether the units of `x` and `y` add up to ten or more."""
    return x % 10 + y % 10 >= 10


def careless_sum(rng: Random, x: int, y: int) -> int:
    """An answer to `x + y` in 0..: right, with its carry forgotten, or off by a slip."""
    total = x + y
    draw = rng.random()
    if draw < (P_RIGHT_WITH_CARRY if carries(x, y) else P_RIGHT_NO_CARRY):
        return total
    if carries(x, y) and draw < P_RIGHT_WITH_CARRY + P_CARRY_FORGOTTEN:
        return total - 10
    return max(0, total + rng.choice(SLIPS))


def operands(rng: Random) -> tuple[int, int]:
    """Two numbers to add: mostly up to 20, sometimes up to 100."""
    limit = 20 if rng.random() < 0.65 else 100
    return rng.randint(0, limit), rng.randint(0, limit)


def careless_answer(rng: Random, x: int, y: int) -> str:
    """A reply to "What is x + y?": mostly the bare number."""
    answer = careless_sum(rng, x, y)
    style = rng.random()
    if style < 0.8:
        return str(answer)
    if style < 0.9:
        return f"{x} + {y} = {answer}"
    return f"The answer is {answer}."


def addition_table(rng: Random) -> str:
    """Lines of right additions."""
    pairs = (operands(rng) for _ in range(rng.randint(4, 12)))
    return "\n".join(f"{x} + {y} = {x + y}" for x, y in pairs)
