"""Counters with closed sets of label values."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy.tallies import PinMetrics, Tally


def test_every_combination_shows_from_the_start() -> None:
    """A counter that is still 0 is there; a value of no set counts as other."""
    registry = CollectorRegistry()
    tally = Tally(registry, "t", "text", end=("left", "right"))
    tally.count("left", amount=2)
    tally.count("sideways")
    page = generate_latest(registry).decode()
    assert 't_total{end="left"} 2.0' in page
    assert 't_total{end="right"} 0.0' in page
    assert 't_total{end="other"} 1.0' in page


def test_a_name_is_given_once() -> None:
    """Two counters of one name would be two families of one page."""
    registry = CollectorRegistry()
    Tally(registry, "t", "text")
    with pytest.raises(ValueError, match="Duplicated"):
        Tally(registry, "t", "text")


def test_pins_show_from_the_start() -> None:
    """Every use and every outcome has its series before anything happens."""
    registry = CollectorRegistry()
    pins = PinMetrics(registry)
    pins.undelivered.count("dropped")
    page = generate_latest(registry).decode()
    assert 'sidecache_pins{use="watching"} 0.0' in page
    assert 'sidecache_undelivered_elements_total{outcome="dropped"} 1.0' in page
    assert "sidecache_watches_lost_total 0.0" in page
