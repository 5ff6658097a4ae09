"""Free sentences about village life from a recursive clause grammar: who does what, where, when, why, meanwhile.

`sentence` gives one template for `grammar.Teller` (its verbs inflect); `page` a short description of a moment.
It tells no story; it is what one sees when walking through Wrenhaven.
"""

from grammar import Teller, tidy
from world import (
    ANIMALS,
    FOODS,
    JOBS,
    LOOKS,
    MEN,
    PLACES,
    SEASONS,
    THINGS,
    WEATHER,
    WOMEN,
)

ADJ = "old young tired tall small thin happy busy shy merry proud quiet sleepy hungry brave clever lonely cheerful".split()
TOPICS = [
    "the weather",
    "the price of eggs",
    "the last storm",
    "the new boat",
    "an old debt",
    "a strange dream",
    "the harvest",
    "a lost ship",
    "the feast",
    "the noise in the night",
    "the broken bridge",
    "the long winter",
    "a wedding",
    "the school",
    "far countries",
    "the best way to cook fish",
    "a treasure on the island",
    "the ghost in the mill",
    "the great flood",
    "a sick horse",
]
REASONS = [
    "it @@be market day",
    "the boats @@+be late",
    "a ship @@be in sight",
    "the stove @@be cold",
    "rain @@be on the way",
    "somebody @@have left the gate open",
    "there @@be no time to lose",
    "the feast @@be near",
    "nobody else @@want to do it",
    "the day @@be so fine",
    "the doctor @@have said so",
    "the roof @@leak",
    "the hens @@+be loose",
    "the night @@have been short",
    "the tide @@be low",
    "the bread @@be ready",
    "the baby @@be asleep",
    "winter @@be coming",
]
MANNER = [
    "slowly",
    "quickly",
    "in silence",
    "with great care",
    "without a word",
    "with a song",
    "as always",
    "for the third time",
    "with both hands",
    "in a hurry",
    "with a deep sigh",
    "happily",
    "with a loud voice",
    "all alone",
    "for a long time",
    "once more",
    "in the shade",
    "under a grey sky",
    "like a king",
    "like a thief",
]
WITH = [
    "a friend",
    "a neighbour",
    "two children",
    "an old dog",
    "a full basket",
    "a heavy bag",
    "a pipe",
    "a red umbrella",
    "a cup of tea",
    "a lantern",
]
CHILD = [
    "@play with {thing}",
    "@throw stones into the water",
    "@run after {animal}",
    "@count the boats",
    "@build a castle of sand",
    "@hide behind a barrel",
    "@learn a poem by heart",
    "@eat an apple",
    "@look for shells",
    "@sing a silly song",
    "@draw {animal} on the wall",
    "@climb on the wall",
    "@ask {job} a hundred questions",
    "@jump over puddles",
    "@fall asleep on a sack",
]
HUMAN = [
    "@carry {thing} to the {place}",
    "@talk with {job} about {topic}",
    "@buy {food}",
    "@sell {thing} to {job}",
    "@lean on the wall and @look at the sky",
    "@wave to {job}",
    "@look for {thing}",
    "@sit down beside {job}",
    "@hum a tune",
    "@count {his} coins",
    "@wash {his} hands at the well",
    "@laugh about {topic}",
    "@quarrel with {job} about {topic}",
    "@repair {thing}",
    "@paint {thing} blue",
    "@give {food} to {job}",
    "@feed {animal}",
    "@chase {animal} out of the {place}",
    "@think about {topic}",
    "@write a letter to {name}",
    "@read a letter from {name}",
    "@drink tea with {job}",
    "@wait for {name}",
    "@close the shutters",
    "@sweep the steps",
    "@hang up wet clothes",
    "@tell {name} about {topic}",
    "@dream of {topic}",
    "@ask {job} for {thing}",
    "@lend {thing} to {name}",
    "@hide {thing} under a bench",
    "@find {thing} near the {place}",
    "@bring {food} to {name}",
    "@pull a cart to the {place}",
    "@stop to look at {thing}",
    "@listen to {animal}",
    "@walk home from the {place}",
    "@shake hands with {job}",
    "@wonder where {name} @@be",
    "@hope for better weather",
    "@remember {topic}",
    "@forget to lock the door",
    "@promise {name} {thing}",
    "@complain about {topic}",
    "@show {thing} to {job}",
    "@teach {name} a song",
    "@pack {thing} into a box",
    "@row along the shore",
    "@split wood behind the {place}",
    "@pick flowers for {name}",
    "@taste the {foodbare}",
    "@drop {thing} with a crash",
    "@trade {thing} for {thing}",
]
BEAST = [
    "@sit on the wall of the {place}",
    "@sniff at {thing}",
    "@run across the lane",
    "@look at {job} with bright eyes",
    "@sleep under {thing}",
    "@steal a piece of bread from {job}",
    "@watch {animal}",
    "@follow {job} home",
    "@drink from a puddle",
    "@hide behind {thing}",
    "@jump over the fence",
    "@wake {job} with a terrible noise",
    "@search for food near the {place}",
    "@sit in the sun",
    "@shake off the water",
    "@chase {animal} round the {place}",
]
REL = [
    "who @have never seen the sea",
    "who @come from the north",
    "who @know every song",
    "who @live beside the {place}",
    "who @sleep badly",
    "who @have lost {his} hat",
    "who @love {food}",
    "who @be in no hurry",
    "who @have a cold",
    "who @speak to nobody",
    "who @be good with animals",
    "who never @forget a face",
    "who @be always late",
    "who @fear nothing but thunder",
]
PART = [
    "humming a tune",
    "smiling to {self}",
    "wet from head to foot",
    "tired after a long day",
    "full of hope",
    "still half asleep",
    "red in the face",
    "out of breath",
    "glad of the company",
    "cold and hungry",
]
THERE = [
    "there @@be a smell of [fish|bread|smoke|wet wool|apples|tar]",
    "somewhere a door @@bang",
    "a bell @@ring [twice|far away|in the chapel]",
    "smoke @@rise from the chimney of the {place}",
    "the light @@be [soft|golden|grey|thin|strange]",
    "a boat with a [red|white|brown|patched] sail @@come in",
    "somebody @@have left {thing} near the {place}",
    "{thing} @@hang on a nail beside the door",
    "voices @+come from the {place}",
    "the {place} @@be [almost empty|full of people|closed|quiet]",
    "nobody @@have time to think of {topic}",
    "everyone @@speak about {topic}",
]


class Scene:
    """Draws clauses; the subject's pronoun decides `{his}` and `{self}`."""

    def __init__(self, rng):
        self.r = rng

    def thing(self):
        kind = self.r.choice(list(THINGS))
        return f"a {self.r.choice(THINGS[kind][0].split('|'))} {kind}"

    def animal(self):
        kind = self.r.choice(list(ANIMALS))
        return self.r.choice([f"a {kind}", f"the {kind}", f"a {self.r.choice(ADJ)} {kind}"])

    def fill(self, text, pron):
        r = self.r
        for key, make in (
            ("{thing}", self.thing),
            ("{animal}", self.animal),
            ("{place}", lambda: r.choice(list(PLACES))),
            (
                "{job}",
                lambda: r.choice([f"the {r.choice(list(JOBS))}", f"the {r.choice(ADJ)} {r.choice(list(JOBS))}", r.choice(WOMEN + MEN)]),
            ),
            ("{topic}", lambda: r.choice(TOPICS)),
            ("{foodbare}", lambda: r.choice(list(FOODS))),
            ("{food}", lambda: r.choice(["some ", "a little ", "fresh "]) + r.choice(list(FOODS))),
            ("{name}", lambda: r.choice(WOMEN + MEN)),
        ):
            while key in text:
                text = text.replace(key, make(), 1)
        return text.replace("{his}", {"he": "his", "she": "her", "it": "its"}[pron]).replace(
            "{self}", {"he": "himself", "she": "herself", "it": "itself"}[pron]
        )

    def actor(self, kind=None):
        """(noun phrase, pronoun, verb phrases it can take)"""
        r, k = self.r, self.r.random()
        if kind or k < 0.28:
            beast = kind or r.choice(list(ANIMALS))
            np = r.choice(["a", "the", "one"]) + " " + r.choice(["", "", r.choice(ADJ) + " ", ANIMALS[beast][7] + " "]) + beast
            return np, "it", BEAST + [h.replace("its", "{his}") for h in ANIMALS[beast][4] if "@@" not in h] * 2
        pron = r.choice(["he", "she"])
        if k < 0.45:
            np = r.choice(["a", "the", "one"]) + " " + r.choice(["", r.choice(ADJ) + " "]) + ("boy" if pron == "he" else "girl")
            return np, pron, CHILD + HUMAN[:12]
        if k < 0.62:
            return r.choice(MEN if pron == "he" else WOMEN), pron, HUMAN
        job = r.choice([j for j in JOBS if j not in ("ferryman", "postwoman")])
        return (
            r.choice(["the ", "the ", "the " + r.choice(ADJ) + " "]) + job + r.choice(["", "", "", " " + r.choice(LOOKS)]),
            pron,
            HUMAN + JOBS[job][1] * 3,
        )

    def act(self, who):
        return self.fill(self.r.choice(who[2]), who[1])

    def sentence(self, kind=None, place=None):
        r = self.r
        a, b = self.actor(kind), self.actor()
        va = self.act(a)
        k = r.random()
        here = place or r.choice(list(PLACES))
        where = f"{PLACES[here][0]} the {here}"
        if k < 0.16:
            return f"{where} {a[0]} {va}"
        if k < 0.28:
            return f"{a[0]} {va} {r.choice(MANNER)}" if " and " not in va else f"{a[0]} {va}"
        if k < 0.40:
            return f"while {a[0]} {va}, {b[0]} {self.act(b)}"
        if k < 0.50:
            return f"{a[0]} {va} because {r.choice(REASONS)}"
        if k < 0.60:
            return f"{a[0]}, {self.fill(r.choice(REL), a[1])}, {va}" if a[1] != "it" else f"{a[0]} {va} near the {here}"
        if k < 0.68:
            return f"{a[0]} {va}, and {b[0]} {self.act(b)}"
        if k < 0.75:
            return f"{a[0]} {va} and {self.act(a)}"
        if k < 0.81:
            return f"{self.fill(r.choice(PART), a[1])}, {a[0]} {va}"
        if k < 0.87:
            return f"{r.choice(['early in the morning', 'at noon', 'before sunset', 'after the rain', 'in the middle of the night', 'on market day', 'every now and then', 'that day', 'near the end of ' + r.choice(list(SEASONS))])} {a[0]} {va}"
        if k < 0.92:
            return f"{a[0]} {va} with {r.choice(WITH)}" if " with " not in va else f"{a[0]} {va}"
        return self.fill(r.choice(THERE), "it")

    def page(self, past=None, place=None, season=None, length=None):
        """A paragraph about one moment at one place."""
        r = self.r
        place, season = place or r.choice(list(PLACES)), season or r.choice(list(SEASONS))
        w = r.choice([w for w, v in WEATHER.items() if season in v[3]])
        t = Teller(r, r.random() < 0.5 if past is None else past)
        time = r.choice(["morning", "afternoon", "evening", "day"])
        lines = [
            r.choice(
                [
                    f"it @@be a {season} {time} and {r.choice(WEATHER[w][0])}",
                    f"it @@be {season} and {r.choice(SEASONS[season][0])}",
                    r.choice(WEATHER[w][0]),
                ]
            )
        ]
        lines += [self.sentence(place=place) for _ in range(length or r.randint(2, 6))]
        if r.random() < 0.4:
            lines.insert(r.randrange(1, len(lines)), PLACES[place][5])
        out = []
        for line in lines:
            t.number = 3
            out.append(tidy(t.expand(line)) + ".")
        return " ".join(out)
