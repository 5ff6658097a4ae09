"""The cast and the moves that all plots share: opening, weather, journeys, asides, feelings, endings.

`Plot` draws people, a thing, a season and places, and collects events (`grammar.Story`) and question-answer pairs.
It decides no plot; those are in `stories.py`.
"""

from grammar import Entity, Story, Teller
from scenes import Scene
from world import (
    ANIMALS,
    FOODS,
    HE_JOBS,
    JOBS,
    LAND,
    LOOKS,
    MEN,
    PLACES,
    SEASONS,
    SHE_JOBS,
    THINGS,
    TRAITS,
    WEATHER,
    WOMEN,
    at_home,
)


def person(rng, pronoun=None, job=None, child=None, avoid=()):
    if job in HE_JOBS or job in SHE_JOBS:
        pronoun = "he" if job in HE_JOBS else "she"
    pronoun = pronoun or rng.choice(["he", "she"])
    name = rng.choice([n for n in (WOMEN if pronoun == "she" else MEN) if n not in avoid])
    trait, look = rng.choice(TRAITS), rng.choice(LOOKS)
    child = rng.random() < 0.3 if child is None and job is None else bool(child)
    if child:
        kind = "girl" if pronoun == "she" else "boy"
        parent = rng.choice(list(JOBS))
        return Entity(
            name,
            pronoun,
            [f"the {kind}", f"the [little|young] {kind}"],
            f"[a {trait} {kind} called {name}|{name}, a {trait} {kind} {look},|a {kind} named {name}]",
            bare=kind,
            job=None,
            child=True,
            trait=trait,
            kind=kind,
            role=f"the [child|{'daughter' if pronoun == 'she' else 'son'}] of the {parent}",
        )
    jobs = [j for j in JOBS if j not in (HE_JOBS if pronoun == "she" else SHE_JOBS)]
    job = job or rng.choice(jobs)
    age = rng.choice(["old", "young", "good", trait])
    return Entity(
        name,
        pronoun,
        [f"the {job}", f"the {age} {job}"],
        f"[a {trait} {job} called {name}|{name}, the {job},|{name}, a {trait} {job},|a {job} named {name}]"
        if rng.random() < 0.6
        else f"a {trait} {job} {look} called {name}",
        bare=job,
        job=job,
        child=False,
        trait=trait,
        kind=job,
        role=f"the {job} of the village",
    )


def animal(rng, kind=None, pool=None):
    kind = kind or rng.choice(pool or list(ANIMALS))
    data = ANIMALS[kind]
    adj = rng.choice(["little", "old", "young", data[7], data[7], "hungry", "clever"])
    return Entity(
        f"the {kind}",
        rng.choice(data[0].split()),
        [f"the {adj} {kind}"],
        f"a {adj} {kind}",
        bare=kind,
        job=None,
        child=False,
        trait=data[7],
        kind=kind,
        role=f"a {adj} {kind}",
        animal=True,
    )


def thing(rng, kind=None, light=None):
    kind = kind or rng.choice([k for k, v in THINGS.items() if light is None or v[3] == light])
    adj = rng.choice(THINGS[kind][0].split("|"))
    return Entity(f"the {kind}", "it", [f"the {adj} {kind}"], f"a {adj} {kind}", bare=f"{adj} {kind}", kind=kind, adj=adj)


def other(pronoun):
    return {"he": "she", "she": "he"}[pronoun]


def at(place):
    return f"{PLACES[place][0]} the {place}"


class Plot:
    """Shared moves of all plots: opening, weather, journeys, feelings, help, endings."""

    def __init__(self, rng, hero=None, item=None, rich=0.6, past=None, first_person=False):
        self.rng, self.rich = rng, rich
        self.P = hero or person(rng)
        if first_person:
            self.P = Entity("I", "I", job=self.P.job, child=self.P.child, trait=self.P.trait, kind=self.P.kind, role=self.P.role)
            past = True
        pronoun = other(self.P.pronoun) if self.P.pronoun in ("he", "she") and rng.random() < 0.75 else None
        self.H = person(rng, pronoun, avoid=(self.P.name,))
        self.X = thing(rng, item) if not isinstance(item, Entity) else item
        self.season = rng.choice(list(SEASONS))
        self.weather = rng.choice([w for w, v in WEATHER.items() if self.season in v[3]])
        self.places = rng.sample(LAND, 5)
        we = Entity("we", "we") if first_person else Entity(f"{self.P.name} and {self.H.name}", "they", ["the two [friends|of them]"])
        self.t = Teller(rng, rng.random() < 0.85 if past is None else past, P=self.P, H=self.H, X=self.X, PH=we)
        self.t.slots["SCENE"] = self.scene
        self.s, self.facts = Story(self.t), []
        self.time = rng.choice(["morning", "afternoon", "evening"])

    def add(self, clause, rel="."):
        self.s.add(clause, rel)
        return self

    def some(self, clause, rel=".", chance=None):
        if self.rng.random() < (self.rich if chance is None else chance):
            self.s.add(clause, rel)

    def para(self):
        self.s.para()
        self.some("{SCENE}", chance=self.rich * 0.15)

    def speak(self, who, text, kind="say"):
        self.s.speak(who, text, kind)

    def ask(self, question, answer):
        self.facts.append((question, answer))

    def is_animal(self):
        return hasattr(self.P, "animal")

    def opening(self):
        P, r = self.P, self.rng
        if P.pronoun == "I":
            who = f"I @be {'a ' + P.kind} [in Wrenhaven|by the sea]" if P.job else "I @live [in Wrenhaven|by the sea]"
            self.some(who, chance=0.4)
        elif self.is_animal():
            data = ANIMALS[P.kind]
            self.add(
                r.choice(
                    [
                        f"[once|long ago|some time ago] {{P.a}} @@live {at_home(P.kind)}",
                        f"there @@be once {{P.a}} who @@love {data[3]}",
                        "near Wrenhaven there @@live {P.a}",
                    ]
                )
            )
            self.some(f"{{P}} @be {data[1]}".replace("its", "{P.his}"), chance=self.rich * 0.6)
            self.some(
                "{P} "
                + r.choice(data[4]).replace("its", "{P.his}").replace("it @@want", "{P.he} @want")
                + " [every day|most of the time|]",
                chance=self.rich * 0.5,
            )
        else:
            self.add(
                r.choice(
                    [
                        "in the village of Wrenhaven there @@live {P.a}",
                        "there @@be once {P.a}",
                        "[once|long ago|some years ago] {P.a} @@live [near the|beside the|not far from the] "
                        + r.choice(["harbour", "mill", "old bridge", "market", "chapel", "inn"]),
                        "this @@be the story of {P.a}",
                        "everyone in Wrenhaven @@know {P!}, " + P.role,
                    ]
                )
            )
            if P.job and r.random() < self.rich:
                self.add("[every day|each morning|from morning to night|] {P} " + r.choice(JOBS[P.job][1]))
            self.some("{P} @be [always|often|very|rather] " + P.trait, chance=self.rich * 0.5)
        self.some(self.aside(), chance=self.rich * 0.6)

    def when(self):
        return f"[one {self.time}|one {self.season} {self.time}|on a {self.season} {self.time}|one day|one day in {self.season}]"

    def scene(self):
        """Something else that goes on; it takes the stage, so the next mention of anybody is by name."""
        self.t.last.clear()
        self.t.number = 3
        return Scene(self.rng).sentence()

    def aside(self):
        r = self.rng
        if r.random() < 0.4:
            return "{SCENE}"
        return r.choice(
            [
                f"it @@be {self.season} and " + r.choice(SEASONS[self.season][0]),
                r.choice(SEASONS[self.season][0]),
                r.choice(WEATHER[self.weather][0]),
                f"that {self.time} " + r.choice(WEATHER[self.weather][0]),
            ]
        )

    def sight(self, place):
        d = PLACES[place]
        return self.rng.choice(
            [
                f"the {place} @@be {self.rng.choice(d[2])}",
                d[5],
                f"there {'@@+be' if d[3][0].split()[0] not in ('a', 'an', 'the', 'half') else '@@be'} {d[3][0]}",
            ]
        )

    def go(self, place, who="P"):
        how = self.rng.choice(["@go", "@walk", "@run", "@hurry", "@set out for", "@make {%s.his} way to" % who])
        to = "" if how.endswith(("for", "to")) else " to"
        self.add(f"{{{who}}} {how}{to} the {place}")
        self.some(self.sight(place), chance=self.rich * 0.45)
        self.some("{SCENE}", chance=self.rich * 0.35)

    def feel(self, feeling, who="P"):
        return f"{{{who}}} [@be|@feel] [very||so|quite] {feeling}"

    def ending(self, feeling="happy"):
        r = self.rng
        self.add(
            r.choice(
                [
                    "[in the evening|later|when it @@be dark] {P} @sit [by the window|on the steps|under the old tree|by the stove] and [@think of|@look at|@dream of] [the sea|the stars|the day|{H.him}|the road|the lights of the harbour]",
                    "{P} [still|often] @think of {H.him} when [the bell @@ring|it @@rain|the wind @@sing|the boats @+come in|the snow @@fall|the first flowers @+open]",
                    "[years later|long after that|to this day] [people @+tell this tale|the children @+ask for this story|people @+speak about it] [at the market|in the inn|by the fire|on winter evenings|at the well]",
                    "{SCENE}, but {PH} @be [glad|content|full of hope|at peace]",
                    "{PH} @walk [along the beach|through the lanes|over the bridge|past the mill] and @talk about [old times|the next day|the summer|nothing at all]",
                    "{P} @go home [tired but happy|with a light heart|before dark|slowly under the stars]",
                    "{P} never @forget that day",
                    "from that day on, {P} @be [a little wiser|more careful|never alone again]",
                    "that night {P} @sleep [well|deeply|like a stone]",
                    self.feel(feeling)
                    + ", and the "
                    + r.choice(["sea", "moon", "village", "wind"])
                    + " @@be "
                    + r.choice(["calm", "quiet", "still"]),
                    "and that @@be how {PH} @become friends",
                    "[in the end|at last] everything @@be well again",
                    "{PH} @laugh about it for [many years|a long time|the rest of the day]",
                    "{PH} @eat " + r.choice(list(FOODS)) + " together and @talk [until late|by the fire|about it all]",
                ]
            )
        )

    def result(self):
        return self.s.text()
