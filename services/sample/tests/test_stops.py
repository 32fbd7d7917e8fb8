"""Where stop strings end a completion."""

from tinsmith_sample.engines.stops import first_stop

_PIECES = ["ab", "c", "S", "TO", "P", "x", "STOP"]


def _decode(tokens: list[int]) -> str:
    return "".join(_PIECES[token] for token in tokens)


def test_tokens_are_kept_up_to_the_one_that_completes_the_string() -> None:
    assert first_stop([0, 2, 3, 4, 5, 5], ["STOP"], _decode) == 4


def test_the_first_of_several_strings_counts() -> None:
    assert first_stop([0, 1, 5, 6], ["STOP", "x"], _decode) == 3


def test_a_string_across_token_borders_is_found() -> None:
    assert first_stop([0, 1, 5], ["bc"], _decode) == 2


def test_a_string_inside_one_token_is_found() -> None:
    assert first_stop([1, 6, 1], ["TO"], _decode) == 2


def test_no_string_means_no_stop() -> None:
    assert first_stop([0, 1, 2], ["STOP"], _decode) is None


def test_no_tokens_mean_no_stop() -> None:
    assert first_stop([], ["STOP"], _decode) is None
