"""Seeds per sample."""

from tinsmith_sample.engines.seeds import sample_seeds


def test_samples_of_one_request_get_distinct_seeds() -> None:
    assert len(set(sample_seeds(3, 1000))) == 1000


def test_seeds_are_a_function_of_the_request_seed() -> None:
    assert sample_seeds(2**63 - 1, 5) == sample_seeds(2**63 - 1, 5)


def test_more_samples_keep_the_seeds_of_fewer() -> None:
    assert sample_seeds(9, 8)[:3] == sample_seeds(9, 3)


def test_neighbouring_request_seeds_share_no_sample_seed() -> None:
    assert not set(sample_seeds(0, 500)) & set(sample_seeds(1, 500))


def test_requests_without_a_seed_differ() -> None:
    assert sample_seeds(None, 4) != sample_seeds(None, 4)


def test_seeds_fit_a_signed_64_bit_integer() -> None:
    assert all(0 <= seed < 2**63 for seed in sample_seeds(2**63 - 1, 200))
