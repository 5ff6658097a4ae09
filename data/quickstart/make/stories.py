"""Chooses a plot for a hero, tells it, and gives it a title. The plots are in `adventures.py` and `encounters.py`."""

from adventures import errand, fear, lost, making, mystery, quarrel, rescue
from encounters import (
    arrival,
    bargain,
    contest,
    fable,
    fishing,
    flood,
    illness,
    promise,
    skill,
    surprise,
)
from grammar import Teller, tidy
from plot import animal

PLOTS = [
    lost,
    errand,
    making,
    rescue,
    quarrel,
    fear,
    mystery,
    contest,
    illness,
    fable,
    skill,
    arrival,
    fishing,
    flood,
    bargain,
    surprise,
    promise,
]
ANIMAL_PLOTS = [fable, fable, fable, lost, quarrel, contest, rescue, surprise, mystery]


def story(rng, rich=0.6, **kw):
    """One story: a `Plot` already told, its paragraphs in `.paragraphs` and title in `.title`."""
    hero = kw.get("hero")
    if hero is None and rng.random() < 0.18:
        hero = kw["hero"] = animal(rng)
    plot = rng.choice(
        ANIMAL_PLOTS
        if hero is not None and hasattr(hero, "animal")
        else [f for f in PLOTS if f is not fable]
        if kw.get("first_person") or hero is not None
        else PLOTS
    )
    p = plot(rng, rich=rich, **kw)
    p.paragraphs = p.result()
    p.title = tidy(
        rng.choice(
            [
                f"{p.P.name} and the {p.X.bare}" if plot in (lost, quarrel) else f"{p.P.name} and {p.H.name}",
                f"the {p.P.kind}'s {p.season}",
                f"a {p.season} {p.time}",
                f"the {p.season} of {p.P.name}",
            ]
        )
    )
    past = Teller(rng, True, **p.t.slots)
    p.pairs = []
    for q, a in p.facts:
        past.last = {}
        p.pairs.append((tidy(past.expand(q)), tidy(past.expand(a))))
    return p
