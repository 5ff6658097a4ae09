"""Questions about the village and their plain answers.

`Speaker.question` draws one of nine topics; each topic knows several questions. It tells no stories and knows no chat format.
"""

from grammar import Entity, Teller, tidy
from plot import at, person
from scenes import HUMAN, Scene
from world import (
    ANIMALS,
    FEELINGS,
    FOODS,
    HE_JOBS,
    JOBS,
    OPPOSITES,
    PLACES,
    SEASONS,
    SHE_JOBS,
    THINGS,
    WEATHER,
    at_home,
)

PLURAL = {"mouse": "mice", "sheep": "sheep", "goose": "geese", "fox": "foxes"}
DIGITS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def plural(noun):
    return PLURAL.get(noun, noun + "s")


def join(items):
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


class Speaker:
    """Makes plain present-tense answers; `prose` expands clauses into sentences."""

    def __init__(self, rng):
        self.rng = rng

    def prose(self, *clauses, **slots):
        t = Teller(self.rng, False, **slots)
        out = []
        for c in clauses:
            if c:
                text = tidy(t.expand(c))
                if not text:
                    continue
                out.append(text if text[-1] in '.?!"' else text + ".")
        return " ".join(out)

    # each of these returns (question template, answer, topic)
    def job(self, job=None):
        r = self.rng
        job = job or r.choice(list(JOBS))
        place, does, needs, why = JOBS[job]
        pron = "he" if job in HE_JOBS else "she" if job in SHE_JOBS else r.choice(["he", "she"])
        J = Entity(f"the {job}", pron)
        a, b = r.sample(does, 2)
        where = f"in the {place}" if place not in PLACES else at(place)
        k = r.randrange(6)
        if k == 0:
            return (
                f"[What does the {job} do|What is the work of a {job}|What does a {job} do all day]?",
                self.prose("{J} " + a, "{J} also " + b if "and @" not in b else "{J} " + b, J=J),
            )
        if k == 1:
            where = where.replace("in the ship", "on the ship")
            return (
                f"[Where does the {job} work|Where can I find the {job}]?",
                self.prose(f"[the {job} works {where}|you can find the {job} {where}]", r.choice(["", "there {J} " + a]), J=J),
            )
        if k == 2:
            return (f"[What does a {job} need|What things does the {job} need]?", self.prose(f"a {job} needs {join(needs)}"))
        if k == 3:
            return (
                f"[Why do we need a {job}|Why is the {job} important]?",
                self.prose(f"[we need a {job} because {why}|because {why}]", "{J} " + a, J=J),
            )
        if k == 4:
            return (f"[Who|Tell me who] {a}" + "?", self.prose(f"the {job} {a}"))
        return (
            f"[Tell me about the {job}|Describe the {job}|What is a {job}].",
            self.prose("{J} works " + where, "{J} " + a, "[every day|often] {J} " + b, r.choice(["", why]), J=J),
        )

    def place(self, place=None):
        r = self.rng
        place = place or r.choice(list(PLACES))
        prep, where, looks, things, acts, sense = PLACES[place]
        k = r.randrange(5)
        be = "are" if things[0].split()[0] not in ("a", "an", "the", "half") else "is"
        if k == 0:
            return (
                f"[Where is the {place}|How do I find the {place}|Can you tell me where the {place} is]?",
                self.prose(f"the {place} is {where}"),
            )
        if k == 1:
            return (
                f"[What can I do|What do people do] {prep} the {place}?",
                self.prose(f"[you can|people] {join(acts)}" if r.random() < 0.6 else f"{prep} the {place} you can {acts[0]} or {acts[1]}"),
            )
        if k == 2:
            return (f"[What is there|What can I see|What do you find] {prep} the {place}?", self.prose(f"there {be} {join(things)}"))
        if k == 3:
            return (
                f"What does the {place} look like?",
                self.prose(f"the {place} is {r.choice(looks)}", f"it has {join(r.sample(things, 2))}"),
            )
        return (
            f"[Describe the {place}|Tell me about the {place}|Tell me something about the {place}].",
            self.prose(
                f"the {place} {'is' if r.random() < 0.6 else 'lies'} {where}" if not where.startswith("a ") else f"the {place} is {where}",
                f"it is {r.choice(looks)}",
                f"there {be} {join(r.sample(things, 2)) if be == 'are' else things[0]}",
                r.choice(["", sense, f"people like to {r.choice(acts)} there"]),
            ),
        )

    def animal(self, kind=None):
        r = self.rng
        kind = kind or r.choice(list(ANIMALS))
        _, look, _, eats, habits, sound, size, trait = ANIMALS[kind]
        A = Entity(f"the {kind}", "it")
        k = r.randrange(8)
        if k == 0:
            return (
                f"[What does a {kind} eat|What do {plural(kind)} eat|What food does a {kind} like]?",
                self.prose(f"[a {kind} eats|it eats] {eats}" if r.random() < 0.6 else f"{plural(kind)} eat {eats}"),
            )
        if k == 1:
            return (
                f"[Where does a {kind} live|Where do {plural(kind)} live|Where is the home of the {kind}]?",
                self.prose(f"a {kind} lives {at_home(kind)}"),
            )
        if k == 2:
            return (
                f"[What does a {kind} look like|Describe a {kind}]" + "?",
                self.prose(f"a {kind} is {look}", f"it is {trait}" if r.random() < 0.4 else ""),
            )
        if k == 3 and sound:
            return (
                f"[What sound does a {kind} make|How does a {kind} sound]?",
                self.prose(f"[a {kind}|it] can {sound}" if r.random() < 0.4 else f"a {kind} {'@@' + sound}"),
            )
        if k == 4:
            o = r.choice([x for x in ANIMALS if ANIMALS[x][6] != size])
            big = size > ANIMALS[o][6]
            form = r.randrange(3)
            if form == 0:
                return (
                    f"[Is a {kind} bigger than a {o}|Is the {kind} larger than the {o}]?",
                    self.prose(f"{'yes' if big else 'no'}, a {kind} is {'bigger' if big else 'smaller'} than a {o}"),
                )
            if form == 1:
                return (f"Which is bigger, a {kind} or a {o}?", self.prose(f"[a|the] {kind if big else o} is bigger"))
            return (f"Which animal is smaller, the {kind} or the {o}?", self.prose(f"the {o if big else kind} is smaller"))
        if k == 5:
            return (f"What does a {kind} do all day?", self.prose("{A} " + habits[0], "{A} also " + habits[1], A=A))
        if k == 6:
            return (
                f"Are {plural(kind)} {trait}?" if r.random() < 0.5 else f"What are {plural(kind)} like?",
                self.prose(f"{plural(kind)} are {trait}"),
            )
        return (
            f"[Tell me about the {kind}|What do you know about {plural(kind)}|Tell me something about {plural(kind)}].",
            self.prose(f"a {kind} is {look}", f"it lives {at_home(kind)}", f"it eats {eats}", r.choice(["", f"it {r.choice(habits)}"])),
        )

    def thing(self, kind=None):
        r = self.rng
        kind = kind or r.choice(list(THINGS))
        adjs, made, use, _ = THINGS[kind]
        adjs = adjs.split("|")
        k = r.randrange(5)
        use2 = f"you can {use} with a {kind}" if not use.startswith(("read", "wear", "buy")) else f"you can {use}"
        if k == 0:
            return (
                f"[What is a {kind} for|What do people use a {kind} for|What can I do with a {kind}]?",
                self.prose(f"[a {kind} is there to {use}|people use a {kind} to {use}|{use2}]"),
            )
        if k == 1:
            return (f"[What is a {kind} made of|Of what is a {kind} made]?", self.prose(f"a {kind} is made of {made}"))
        if k == 2:
            return (
                f"[Describe a {kind}|What does a {kind} look like].",
                self.prose(f"[a|this] {kind} is made of {made}", f"it can be {adjs[0]} or {adjs[-1]}"),
            )
        if k == 3:
            return (
                f"[I have lost my {kind}|I can not find my {kind}].",
                self.prose(
                    r.choice(
                        [f"look {at(r.choice(list(PLACES)))}", "think of where you had it last", "ask your neighbours", "do not worry"]
                    ),
                    f"[perhaps|maybe] it is {at(r.choice(list(PLACES)))}",
                ),
            )
        return (f"[Tell me about a {kind}|What is a {kind}].", self.prose(f"a {kind} is made of {made}", f"people use it to {use}"))

    def food(self, food=None):
        r = self.rng
        food = food or r.choice(list(FOODS))
        ingr, steps, note = FOODS[food]
        k = r.randrange(4)
        if k == 0:
            return (f"[What do I need for {food}|What is in {food}|What do I need to make {food}]?", self.prose(f"you need {join(ingr)}"))
        if k == 1:
            order = [r.choice(["first", ""])] + [r.choice(["then", "next", "after that", ""]) for _ in steps[1:]]
            return (
                f"[How do I make {food}|How is {food} made|Give me a recipe for {food}|How do you cook {food}]" + "?",
                self.prose(*[(o + " " + s).strip() for o, s in zip(order, steps)]),
            )
        if k == 2:
            verb = "are" if food.endswith("s") else "is"
            return (
                f"[Is {food} good|Do people like {food}|What is special about {food}]?",
                self.prose(
                    f"[yes, |]{note}" if note.startswith(("everyone", "it ", "they", "the children")) else f"[yes, |]{food} {verb} {note}"
                ),
            )
        return (
            f"Who can make {food} for me?",
            self.prose(
                f"[ask the {'baker' if 'bread' in food or 'cake' in food or 'pie' in food else 'cook'}|the innkeeper can make it|you can make it yourself]",
                f"you need {join(ingr)}",
            ),
        )

    def weather(self, w=None):
        r = self.rng
        if w is None and r.random() < 0.35:
            s = r.choice(list(SEASONS))
            signs, acts, note = SEASONS[s]
            k = r.randrange(3)
            if k == 0:
                return (f"[What happens in {s}|What is {s} like|Tell me about {s}]?", self.prose(f"in {s} {note}", r.choice(signs)))
            if k == 1:
                return (f"What can [I|people|we] do in {s}?", self.prose(f"in {s} you can {join(acts)}"))
            order = list(SEASONS)
            return (
                f"[What comes after {s}|Which season comes after {s}]?",
                self.prose(
                    f"{order[(order.index(s) + 1) % 4]} comes after {s}"
                    if r.random() < 0.5
                    else f"after {s} comes {order[(order.index(s) + 1) % 4]}"
                ),
            )
        w = w or r.choice(list(WEATHER))
        scenes, hard, what, _ = WEATHER[w]
        k = r.randrange(4)
        art = "a " if w == "storm" else ""
        if k == 0:
            return (f"[What is {art}{w}|Can you explain {art}{w}]?", what + ".")
        if k == 1:
            return (f"[Describe {art}{w} in Wrenhaven|What is {art}{w} like in Wrenhaven].", self.prose(*r.sample(scenes, 2)))
        if k == 2:
            return (f"[What is hard|What is difficult] in {art}{w}?", self.prose(f"in {art}{w} it is hard to {hard}"))
        return (
            "[How is the weather|What is the weather like today|What is the weather like]?",
            self.prose(r.choice(scenes), f"it is hard to {hard}" if r.random() < 0.4 else ""),
        )

    def feeling(self, f=None):
        r = self.rng
        f = f or r.choice(list(FEELINGS))
        sign, why, advice = FEELINGS[f]
        k = r.randrange(3)
        if k == 0:
            sorry = "I am glad to hear that" if f in ("happy", "proud") else "I am sorry to hear that"
            return (f"I [am|feel] [so||very] {f}.", self.prose(f"{sorry}" if r.random() < 0.6 else "", advice))
        if k == 1:
            return (f"What [should|can] I do when I am {f}?", self.prose(f"[when you are {f}, |]{advice}"))
        P = person(r)
        return (f"{P.name} [is|looks] {f}. [Why|What may be the reason]?", self.prose(f"[perhaps|maybe] {P.name} {why}"))

    def scene(self, _=None):
        """Something that happens now, or one sentence about given words."""
        r, k = self.rng, self.rng.randrange(4)
        scene = Scene(r)
        place = r.choice(list(PLACES))
        if k == 0:
            return (
                f"[What is going on|What is happening] {PLACES[place][0]} the {place}?",
                self.prose(*[scene.sentence(place=place) for _ in range(r.randint(1, 3))]),
            )
        if k == 1:
            kind = r.choice(list(ANIMALS))
            return (
                f"[Write a sentence about|Say something about|Give me a sentence with] a {kind}.",
                self.prose(f"{scene.actor(kind)[0]} {scene.act(scene.actor(kind))}"),
            )
        if k == 2:
            job = r.choice(list(JOBS))
            who = (f"the {job}", "she" if job in SHE_JOBS else "he", None)
            return (
                f"[What is the {job} doing today|Write a sentence about the {job}]",
                self.prose(
                    f"today the {job} {scene.fill(r.choice(HUMAN), who[1])}"
                    if r.random() < 0.5
                    else f"the {job} {scene.fill(r.choice(HUMAN), who[1])}"
                ),
            )
        season = r.choice(list(SEASONS))
        return (
            f"[Describe|Tell me about|Paint me a picture of] a {season} day {PLACES[place][0]} the {place}.",
            scene.page(False, place, season, r.randint(1, 4)),
        )

    def small(self):
        """Opposites, sums, lists, greetings, and who the assistant is."""
        r = self.rng
        k = r.randrange(9)
        if k == 0:
            a, b = r.choice(list(OPPOSITES.items()))
            if r.random() < 0.4:
                a, b = b, a
            return (f"[What is the opposite of {a}|Give me the opposite of {a}]?", self.prose(f"[the opposite of {a} is {b}|{b}]"))
        if k == 2 and r.random() < 0.4:
            a, b, x = r.randint(2, 9), r.randint(2, 9), r.choice(["cake", "kite", "rope", "basket", "cup"])
            return (f"One {x} costs {a} coins. [What do|How much do] {b} {x}s cost?", f"{a} * {b} = {a * b}. {b} {x}s cost {a * b} coins.")
        if k in (1, 2):
            a, b = r.randint(1, 20), r.randint(1, 20)
            if r.random() < 0.3:
                a, b = max(a, b), min(a, b)
                x = r.choice(["apples", "eggs", "coins", "shells", "boats"])
                n = person(r).name
                return (
                    f"{n} has {a} {x} and gives away {b}. How many {x} are left?",
                    f"{a} - {b} = {a - b}. {n} has {a - b} {x if a - b != 1 else x[:-1]} left.",
                )
            if r.random() < 0.4:
                x = r.choice(["apples", "eggs", "coins", "shells", "boats"])
                n = person(r).name
                return (f"{n} has {a} {x} and finds {b} more. How many {x} are there now?", f"{a} + {b} = {a + b}. {n} has {a + b} {x}.")
            return (f"[What is|How much is] {a} + {b}?", f"[{a} + {b} = {a + b}|{a + b}].")
        if k == 3:
            n = r.randint(2, 4)
            pool, word = r.choice(
                [(ANIMALS, "animals"), (THINGS, "things in a house"), (FOODS, "dishes"), (PLACES, "places in Wrenhaven"), (JOBS, "jobs")]
            )
            art = "" if pool is FOODS else "a " if pool in (THINGS, JOBS) else "the "
            return (f"[Name|Tell me|List] {DIGITS[n]} {word}.", self.prose(join([art + x for x in r.sample(list(pool), n)])))
        if k == 4:
            return (
                "[Who are you|What are you|What can you do]?",
                "[I am a small helper from Wrenhaven|I am a small language model]. [I can tell stories and answer questions|Ask me about the village, its people and its animals].",
            )
        if k == 5:
            return (
                "[Hello|Good morning|Good evening|Hi|Good day]" + r.choice(["!", "."]),
                "[Hello|Good day]! [How can I help you|What would you like to know|Shall I tell you a story]?",
            )
        if k == 6:
            return (
                "[Thank you|Thanks|Thank you very much]" + r.choice(["!", "."]),
                "[You are welcome|I am glad I could help|It was a pleasure].",
            )
        if k == 7:
            n = r.randint(2, 11)
            return (
                f"[What number comes after|Which number follows] {r.choice([DIGITS[n], str(n)])}?",
                f"[{DIGITS[n + 1].capitalize() if n < 11 else 'Twelve'}|{n + 1}].",
            )
        return (
            "[What is Wrenhaven|Where do you live|Tell me about Wrenhaven]?",
            "Wrenhaven is a small village by the sea. [It has a harbour and a lighthouse|Many people there are fishers and farmers].",
        )

    TOPICS = ("job", "place", "animal", "thing", "food", "weather", "feeling", "scene", "small")

    def question(self, topic=None, subject=None):
        """A question, its plain answer and the topic."""
        topic = topic or self.rng.choices(self.TOPICS, (5, 5, 6, 4, 4, 3, 3, 9, 5))[0]
        q, a = getattr(self, topic)() if topic == "small" else getattr(self, topic)(subject)
        t = Teller(self.rng, False)
        q = tidy(t.expand(q))
        if q.startswith(("Describe", "Tell", "Give")) and q.endswith("?"):
            q = q[:-1] + "."
        if q.endswith("today"):
            q += "?"
        if q[-1] not in ".?!":
            q += "."
        if q.startswith(("What", "Who", "Where", "How", "Can", "Which")) and q.endswith("."):
            q = q[:-1] + "?"
        return q, tidy(t.expand(a)), topic
