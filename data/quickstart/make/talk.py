"""Conversations and short non-narrative pages: questions about the village, letters, recipes, dialogues.

`conversation` gives chat messages whose assistant answers plainly; `page` gives plain text.
The old captain speaks here as a character of pages and stories; the assistant never speaks like him.
"""
import random

from grammar import Entity, Teller, tidy
from scenes import HUMAN, Scene
from plot import animal, at, person
from stories import lost, quarrel, story
from world import (ANIMALS, FEELINGS, FOODS, HE_JOBS, JOBS, MEN, OPPOSITES, PLACES, SEASONS, SHE_JOBS, THINGS, TRAITS, WEATHER, WOMEN)

PLURAL = {"mouse": "mice", "sheep": "sheep", "goose": "geese", "fox": "foxes"}
DIGITS = "zero one two three four five six seven eight nine ten eleven twelve".split()

CAPTAIN_CALLS = ["Ahoy, shipmate!", "Aye, aye, shipmate!", "Ahoy there!", "Blow me down!"]
CAPTAIN_OATHS = ["by my beard", "as sure as the tide", "by the seven seas", "mark my words"]
COUPLETS = {
 "job": ["Work with a will and work with a song, and the day at sea is never long.", "A steady hand and an honest crew will bring the old ship safely through."],
 "place": ["From port to port the captain may roam, but every good ship comes sailing home.", "The stars above and the sea below will show an old sailor the way to go."],
 "animal": ["Fur or feather, claw or fin, the sea lets every creature in.", "Great or small, by land or sea, every creature sails with me."],
 "thing": ["Keep it dry and keep it near, and you will sail without a fear.", "A thing well made and a thing well kept is worth more than a night well slept."],
 "food": ["A full pot and a fire bright will warm a sailor through the night.", "Stir it slow and serve it hot, the best of friends is a cooking pot."],
 "weather": ["Let it blow and let it pour, the brave old ship will come to shore.", "Wind and wave and rain and sun, the sea has time for every one."],
 "feeling": ["Dry your eyes and lift your head, the sky at dawn is gold and red.", "The darkest night at sea will end, so hold the rope and trust a friend."],
}


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
            return (f"[What does the {job} do|What is the work of a {job}|What does a {job} do all day]?", self.prose("{J} " + a, "{J} also " + b if "and @" not in b else "{J} " + b, J=J))
        if k == 1:
            where = where.replace("at the ship", "on the ship").replace("in the ship", "on the ship")
            return (f"[Where does the {job} work|Where can I find the {job}]?", self.prose(f"[the {job} works {where}|you can find the {job} {where}]", r.choice(["", "there {J} " + a]), J=J))
        if k == 2:
            return (f"[What does a {job} need|What things does the {job} need]?", self.prose(f"a {job} needs {join(needs)}"))
        if k == 3:
            return (f"[Why do we need a {job}|Why is the {job} important]?", self.prose(f"[we need a {job} because {why}|because {why}]", "{J} " + a, J=J))
        if k == 4:
            return (f"[Who|Tell me who] {a}" + "?", self.prose(f"the {job} {a}"))
        return (f"[Tell me about the {job}|Describe the {job}|What is a {job}].", self.prose("{J} works " + where, "{J} " + a, "[every day|often] {J} " + b, r.choice(["", why]), J=J))

    def place(self, place=None):
        r = self.rng
        place = place or r.choice(list(PLACES))
        prep, where, looks, things, acts, sense = PLACES[place]
        k = r.randrange(5)
        be = "are" if things[0].split()[0] not in ("a", "an", "the", "half") else "is"
        if k == 0:
            return (f"[Where is the {place}|How do I find the {place}|Can you tell me where the {place} is]?", self.prose(f"the {place} is {where}"))
        if k == 1:
            return (f"[What can I do|What do people do] {prep} the {place}?", self.prose(f"[you can|people] {join(acts)}" if r.random() < 0.6 else f"{prep} the {place} you can {acts[0]} or {acts[1]}"))
        if k == 2:
            return (f"[What is there|What can I see|What do you find] {prep} the {place}?", self.prose(f"there {be} {join(things)}"))
        if k == 3:
            return (f"What does the {place} look like?", self.prose(f"the {place} is {r.choice(looks)}", f"it has {join(r.sample(things, 2))}"))
        return (f"[Describe the {place}|Tell me about the {place}|Tell me something about the {place}].",
                self.prose(f"the {place} {'is' if r.random() < .6 else 'lies'} {where}" if not where.startswith("a ") else f"the {place} is {where}", f"it is {r.choice(looks)}", f"there {be} {join(r.sample(things, 2)) if be == 'are' else things[0]}", r.choice(["", sense, f"people like to {r.choice(acts)} there"])))

    def animal(self, kind=None):
        r = self.rng
        kind = kind or r.choice(list(ANIMALS))
        prons, look, home, eats, habits, sound, size, trait = ANIMALS[kind]
        A = Entity(f"the {kind}", "it")
        k = r.randrange(8)
        if k == 0:
            return (f"[What does a {kind} eat|What do {plural(kind)} eat|What food does a {kind} like]?", self.prose(f"[a {kind} eats|it eats] {eats}" if r.random() < 0.6 else f"{plural(kind)} eat {eats}"))
        live = "on" if home in ("the cliff", "the hill") else "by" if home in ("the pond",) else "in"
        live = "on" if home.startswith(("the bank", "the rocks", "the farm")) else live
        if k == 1:
            return (f"[Where does a {kind} live|Where do {plural(kind)} live|Where is the home of the {kind}]?", self.prose(f"a {kind} lives {live} {home}"))
        if k == 2:
            return (f"[What does a {kind} look like|Describe a {kind}]" + "?", self.prose(f"a {kind} is {look}", f"it is {trait}" if r.random() < 0.4 else ""))
        if k == 3 and sound:
            return (f"[What sound does a {kind} make|How does a {kind} sound]?", self.prose(f"[a {kind}|it] can {sound}" if r.random() < 0.4 else f"a {kind} {'@@' + sound}"))
        if k == 4:
            o = r.choice([x for x in ANIMALS if ANIMALS[x][6] != size])
            big = size > ANIMALS[o][6]
            form = r.randrange(3)
            if form == 0:
                return (f"[Is a {kind} bigger than a {o}|Is the {kind} larger than the {o}]?", self.prose(f"{'yes' if big else 'no'}, a {kind} is {'bigger' if big else 'smaller'} than a {o}"))
            if form == 1:
                return (f"Which is bigger, a {kind} or a {o}?", self.prose(f"[a|the] {kind if big else o} is bigger"))
            return (f"Which animal is smaller, the {kind} or the {o}?", self.prose(f"the {o if big else kind} is smaller"))
        if k == 5:
            return (f"What does a {kind} do all day?", self.prose("{A} " + habits[0], "{A} also " + habits[1], A=A))
        if k == 6:
            return (f"Are {plural(kind)} {trait}?" if r.random() < 0.5 else f"What are {plural(kind)} like?", self.prose(f"{plural(kind)} are {trait}"))
        return (f"[Tell me about the {kind}|What do you know about {plural(kind)}|Tell me something about {plural(kind)}].",
                self.prose(f"a {kind} is {look}", f"it lives {live} {home}", f"it eats {eats}", r.choice(["", f"it {r.choice(habits)}"])))

    def thing(self, kind=None):
        r = self.rng
        kind = kind or r.choice(list(THINGS))
        adjs, made, use, _ = THINGS[kind]
        adjs = adjs.split("|")
        k = r.randrange(5)
        use2 = f"you can {use} with a {kind}" if not use.startswith(("read", "wear", "buy")) else f"you can {use}"
        if k == 0:
            return (f"[What is a {kind} for|What do people use a {kind} for|What can I do with a {kind}]?", self.prose(f"[a {kind} is there to {use}|people use a {kind} to {use}|{use2}]"))
        if k == 1:
            return (f"[What is a {kind} made of|Of what is a {kind} made]?", self.prose(f"a {kind} is made of {made}"))
        if k == 2:
            return (f"[Describe a {kind}|What does a {kind} look like].", self.prose(f"[a|this] {kind} is made of {made}", f"it can be {adjs[0]} or {adjs[-1]}"))
        if k == 3:
            return (f"[I have lost my {kind}|I can not find my {kind}].", self.prose(r.choice([f"look {at(r.choice(list(PLACES)))}", "think of where you had it last", "ask your neighbours", "do not worry"]), f"[perhaps|maybe] it is {at(r.choice(list(PLACES)))}"))
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
            return (f"[How do I make {food}|How is {food} made|Give me a recipe for {food}|How do you cook {food}]" + "?", self.prose(*[(o + " " + s).strip() for o, s in zip(order, steps)]))
        if k == 2:
            verb = "are" if food.endswith("s") else "is"
            return (f"[Is {food} good|Do people like {food}|What is special about {food}]?", self.prose(f"[yes, |]{note}" if note.startswith(("everyone", "it ", "they", "the children")) else f"[yes, |]{food} {verb} {note}"))
        return (f"Who can make {food} for me?", self.prose(f"[ask the {'baker' if 'bread' in food or 'cake' in food or 'pie' in food else 'cook'}|the innkeeper can make it|you can make it yourself]", f"you need {join(ingr)}"))

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
            return (f"[What comes after {s}|Which season comes after {s}]?", self.prose(f"{order[(order.index(s) + 1) % 4]} comes after {s}" if r.random() < 0.5 else f"after {s} comes {order[(order.index(s) + 1) % 4]}"))
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
        return ("[How is the weather|What is the weather like today|What is the weather like]?", self.prose(r.choice(scenes), f"it is hard to {hard}" if r.random() < 0.4 else ""))

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
            return (f"[What is going on|What is happening] {PLACES[place][0]} the {place}?", self.prose(*[scene.sentence(place=place) for _ in range(r.randint(1, 3))]))
        if k == 1:
            kind = r.choice(list(ANIMALS))
            return (f"[Write a sentence about|Say something about|Give me a sentence with] a {kind}.", self.prose(f"{scene.actor(kind)[0]} {scene.act(scene.actor(kind))}"))
        if k == 2:
            job = r.choice(list(JOBS))
            who = (f"the {job}", "she" if job in SHE_JOBS else "he", None)
            return (f"[What is the {job} doing today|Write a sentence about the {job}]", self.prose(f"today the {job} {scene.fill(r.choice(HUMAN), who[1])}" if r.random() < 0.5 else f"the {job} {scene.fill(r.choice(HUMAN), who[1])}"))
        season = r.choice(list(SEASONS))
        return (f"[Describe|Tell me about|Paint me a picture of] a {season} day {PLACES[place][0]} the {place}.", scene.page(False, place, season, r.randint(1, 4)))

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
                return (f"{n} has {a} {x} and gives away {b}. How many {x} are left?", f"{a} - {b} = {a - b}. {n} has {a - b} {x if a - b != 1 else x[:-1]} left.")
            if r.random() < 0.4:
                x = r.choice(["apples", "eggs", "coins", "shells", "boats"])
                n = person(r).name
                return (f"{n} has {a} {x} and finds {b} more. How many {x} are there now?", f"{a} + {b} = {a + b}. {n} has {a + b} {x}.")
            return (f"[What is|How much is] {a} + {b}?", f"[{a} + {b} = {a + b}|{a + b}].")
        if k == 3:
            n = r.randint(2, 4)
            pool, word = r.choice([(ANIMALS, "animals"), (THINGS, "things in a house"), (FOODS, "dishes"), (PLACES, "places in Wrenhaven"), (JOBS, "jobs")])
            art = "" if pool is FOODS else "a " if pool in (THINGS, JOBS) else "the "
            return (f"[Name|Tell me|List] {DIGITS[n]} {word}.", self.prose(join([art + x for x in r.sample(list(pool), n)])))
        if k == 4:
            return ("[Who are you|What are you|What can you do]?", "[I am a small helper from Wrenhaven|I am a small language model]. [I can tell stories and answer questions|Ask me about the village, its people and its animals].")
        if k == 5:
            return ("[Hello|Good morning|Good evening|Hi|Good day]" + r.choice(["!", "."]), "[Hello|Good day]! [How can I help you|What would you like to know|Shall I tell you a story]?")
        if k == 6:
            return ("[Thank you|Thanks|Thank you very much]" + r.choice(["!", "."]), "[You are welcome|I am glad I could help|It was a pleasure].")
        if k == 7:
            n = r.randint(2, 11)
            return (f"[What number comes after|Which number follows] {r.choice([DIGITS[n], str(n)])}?", f"[{DIGITS[n + 1].capitalize() if n < 11 else 'Twelve'}|{n + 1}].")
        return ("[What is Wrenhaven|Where do you live|Tell me about Wrenhaven]?", "Wrenhaven is a small village by the sea. [It has a harbour and a lighthouse|Many people there are fishers and farmers].")

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


def letter(rng):
    """A letter, its sender's request phrase included."""
    P, Q = person(rng), person(rng)
    s = Speaker(rng)
    w = rng.choice(list(WEATHER))
    t = Teller(rng, True, P=Entity("I", "I"))
    news = story(rng, 0.25, hero=P, first_person=True)
    body = [t.expand(rng.choice(["[how are you|I hope you are well|thank you for your letter|I often think of you]",
                                 f"here in Wrenhaven {rng.choice(WEATHER[w][0])}", "I have news for you"])),
            ]
    mid = " ".join(news.paragraphs)
    end = t.expand("[please write soon|come and visit us in " + rng.choice(list(SEASONS)) + "|give my love to your family|I will write again next week]")
    fix = lambda x: tidy(x) + ("?" if x.startswith("how are") else ".")
    greet = "Dear " + rng.choice([Q.name, Q.name, "friend", "grandmother", "uncle"]) + ","
    bye = rng.choice(["Your friend", "Yours", "With love", "Best wishes"]) + ",\n" + P.name
    return f"{greet}\n\n{fix(body[0])} {mid}\n\n{fix(end)}\n\n{bye}", P, Q


def exchange(rng):
    """Two villagers talk; the lines are questions and answers from the same knowledge."""
    P, s = person(rng), Speaker(rng)
    Q = person(rng, avoid=(P.name,))
    lines = [f"{P.name}: " + rng.choice(["Good morning!", "Hello, " + Q.name + "!", "There you are at last.", "Have you a moment?"]),
             f"{Q.name}: " + rng.choice(["Good morning, " + P.name + ".", "Hello! What is it?", "Of course. What would you like to know?", "I was at work. What is the matter?"])]
    for _ in range(rng.randint(1, 3)):
        q, a, _t = s.question(rng.choice(Speaker.TOPICS[:-1]))
        lines += [f"{P.name}: {q}", f"{Q.name}: {a}"]
    lines += [f"{P.name}: " + rng.choice(["Thank you.", "That is good to know.", "I did not know that.", "You know so much!"]),
              f"{Q.name}: " + rng.choice(["You are welcome.", "Come again.", "Good luck!", "See you tomorrow."])]
    return "\n".join(lines)


def captain(rng):
    """Captain Brand, a character, talks in the way that only he has."""
    s = Speaker(rng)
    P = person(rng)
    topic = rng.choice(list(COUPLETS))
    q, a, _ = s.question(topic)
    intro = rng.choice([f"Old Captain Brand sat at the harbour when {P.name} came by.", f"{P.name} met Captain Brand, who had sailed the sea for fifty years.",
                        f"Captain Brand had a white beard and a story for everyone. One day {P.name} sat down beside him."])
    head = a[:-1] if a.endswith(".") else a
    mark = f", {rng.choice(CAPTAIN_OATHS)}," if a.endswith(".") else ""
    tail = rng.choice([f"Then the captain sang: \"{rng.choice(COUPLETS[topic])}\"", f"{P.name} laughed, for nobody else in the village spoke like that.", f"\"{rng.choice(COUPLETS[topic])}\" sang the old man.", "Then he looked out over the sea."])
    return f"{intro} {P.name} {'asked' if q.endswith('?') else 'said'}, \"{q}\" \"{rng.choice(CAPTAIN_CALLS)} {head}{mark}\" said the captain. {tail}"


def portrait(rng):
    """A descriptive page about one subject, several facts deep."""
    s = Speaker(rng)
    topic = rng.choice(["job", "place", "animal", "thing", "weather"])
    subject = rng.choice(list({"job": JOBS, "place": PLACES, "animal": ANIMALS, "thing": THINGS, "weather": WEATHER}[topic]))
    seen, out = set(), []
    for _ in range(9):
        q, a, _t = s.question(topic, subject)
        if a in seen or a.startswith(("Yes", "No", "Because", "It ", "You", "Look", "Think", "Ask", "Do", "The hen is")) or len(a) < 25:
            continue
        seen.add(a)
        out += [x for x in a.replace(". ", ".\n").split("\n") if x not in out]
    return subject.capitalize() + "\n\n" + " ".join(out[:7])


def recipe(rng):
    food = rng.choice(list(FOODS))
    ingr, steps, note = FOODS[food]
    who = person(rng)
    head = rng.choice([f"{food.capitalize()}", f"{who.name}'s {food}", f"How {who.name} makes {food}"])
    body = "You need: " + join(ingr) + "." if rng.random() < 0.5 else "For this you need " + join(ingr) + "."
    lines = [f"{i + 1}. {s.capitalize()}." for i, s in enumerate(steps)] if rng.random() < 0.5 else [" ".join(tidy(rng.choice(["", "", "then ", "now "]) + s) + "." for s in steps)]
    return f"{head}\n\n{body}\n" + "\n".join(lines) + ("\n" + rng.choice(["Serve it with a smile.", "Enough for four.", "Enough for the whole family.", "Eat it with good friends."]) if rng.random() < 0.6 else "")


def moment(rng):
    return "\n\n".join(Scene(rng).page() for _ in range(rng.choice([1, 1, 2])))


def page(rng):
    """One plain-text document."""
    k = rng.random()
    if k < 0.62:
        p = story(rng, rng.uniform(0.3, 0.9), first_person=rng.random() < 0.1)
        text = "\n\n".join(p.paragraphs)
        if rng.random() < 0.3:
            text = p.title + "\n\n" + text
        if rng.random() < 0.2 and p.pairs:
            text += "\n\n" + "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in p.pairs)
        return text
    return rng.choice([lambda r: letter(r)[0], exchange, captain, portrait, recipe, moment, moment])(rng)


SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant.", "You answer questions about Wrenhaven.", "You are a friendly helper.",
           "Answer in plain words.", "You tell stories and answer questions."]


def ask_story(rng):
    """A request for a story and a story that keeps to it."""
    k = rng.random()
    if k < 0.3:
        hero = animal(rng)
        about = f"a {hero.kind}" if rng.random() < 0.6 else hero.first
        p = story(rng, rng.uniform(0.1, 0.4), hero=hero)
    elif k < 0.65:
        hero = person(rng)
        about = rng.choice([f"a {hero.kind}", f"a {hero.trait} {hero.kind}", f"{hero.name}, the {hero.kind}", f"a {hero.kind} called {hero.name}"])
        p = story(rng, rng.uniform(0.1, 0.4), hero=hero)
    else:
        item = rng.choice(list(THINGS))
        p = (lost if rng.random() < 0.6 else quarrel)(rng, rich=rng.uniform(0.1, 0.4), item=item)
        p.paragraphs = p.result()
        about = rng.choice([f"a {item}", f"a {p.X.bare}"]) if rng.random() < 0.6 else f"a {p.P.kind} and a {item}"
    t = Teller(rng, True)
    ask = tidy(t.expand(f"[Tell me a story about {about}|Write a [short |]story about {about}|Can you tell me a story about {about}|I would like to hear a story about {about}|A story about {about}, please]."))
    if ask.startswith("Can"):
        ask = ask[:-1] + "?"
    return ask, "\n\n".join(p.paragraphs) if rng.random() < 0.7 else " ".join(p.paragraphs)


def conversation(rng):
    """Chat messages: one to four turns, with or without a system message."""
    s, k, m = Speaker(rng), rng.random(), []
    if rng.random() < 0.3:
        m.append({"role": "system", "content": rng.choice(SYSTEMS)})
    say = lambda u, a: m.extend([{"role": "user", "content": u}, {"role": "assistant", "content": a}])
    if k < 0.30:
        say(*ask_story(rng))
        if rng.random() < 0.25:
            say(*s.question()[:2])
    elif k < 0.42:
        p = story(rng, rng.uniform(0.1, 0.5), past=True)
        if p.pairs:
            pairs = rng.sample(p.pairs, min(len(p.pairs), rng.randint(1, 3)))
            passage = " ".join(p.paragraphs)
            say(rng.choice(["", "Read this: ", "Here is a story. "]) + passage + "\n\n" + pairs[0][0], pairs[0][1])
            for q, a in pairs[1:]:
                say(q, a)
        else:
            say(*s.question()[:2])
    elif k < 0.45:
        text, P, Q = letter(rng)
        say(tidy(Teller(rng, True).expand(f"[Write a letter|Please write a letter|Help me write a letter] from {P.name}.")), text)
    else:
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4, 5])):
            say(*s.question()[:2])
    return m
