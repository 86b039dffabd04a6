import numpy as np
import pytest

from clipsan.stages.detectors.concept_content import Content, draws_as_diverse, find_content

WIDTH, CONTENT = 30, 5


@pytest.fixture(scope="module")
def content() -> Content:
    return find_content(np.diag([4.0] * CONTENT + [1.0] * (WIDTH - CONTENT)))


def pictures(spread: float, n: int = 4_000) -> np.ndarray:
    """Pictures whose content varies by `spread`, 0 within one concept and 1 as the whole data set."""
    rng = np.random.default_rng(0)
    variance = np.array([1 + 3 * spread] * CONTENT + [1.0] * (WIDTH - CONTENT))
    return rng.normal(size=(n, WIDTH)) * np.sqrt(variance)


def test_axes_are_those_along_which_concepts_differ(content: Content) -> None:
    assert content.variance == pytest.approx([4.0] * CONTENT)
    np.testing.assert_allclose(content.axes[CONTENT:], 0, atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dimmed", [1.3, 1.0, 0.8])
def test_diversity_is_the_share_of_the_data_sets_whatever_dims_the_pictures(
    content: Content, spread: float, dimmed: float
) -> None:
    shift = np.linspace(-9, 9, WIDTH)
    assert content.diversity(dimmed * pictures(spread) + shift) == pytest.approx(spread, abs=0.05)


def test_nothing_is_said_of_two_pictures_or_where_concepts_do_not_differ(content: Content) -> None:
    assert content.diversity(pictures(1.0)[:2]) == 0
    assert find_content(np.eye(WIDTH)).diversity(pictures(1.0)) == 0


def test_near_identical_pictures_are_narrower_than_a_concept(content: Content) -> None:
    for spread in (0.0, 1.0):
        assert content.diversity(0.1 * pictures(spread)[:10]) == pytest.approx(-1 / 3, abs=0.05)


@pytest.mark.parametrize("pictures_of", [6, 40])
def test_draws_from_the_data_are_as_diverse_as_one_another_and_less_so_than_what_varies_more(
    content: Content, pictures_of: int
) -> None:
    data = pictures(1.0)
    chances = [draws_as_diverse([content], [data[i : i + pictures_of]], [data], 199) for i in range(0, 2_000, 100)]
    assert 0.2 < np.mean(chances) < 0.8
    assert np.mean([chance <= 0.05 for chance in chances]) <= 0.2
    assert draws_as_diverse([content], [pictures(0.0)[:pictures_of]], [data]) > 0.5
    assert draws_as_diverse([content], [pictures(9.0)[:pictures_of]], [data]) <= 0.05
    assert draws_as_diverse([content], [1.5 * data[:pictures_of]], [data]) > 0.05


def test_chance_of_a_draw_is_repeatable_and_one_where_nothing_can_be_said(content: Content) -> None:
    data, wide = pictures(1.0)[:50], pictures(2.0)[:20]
    assert draws_as_diverse([content], [wide], [data], 99) == draws_as_diverse([content], [wide], [data], 99)
    assert draws_as_diverse([content], [wide], [data[:10]]) == 1
    assert draws_as_diverse([content], [wide[:2]], [data]) == 1
