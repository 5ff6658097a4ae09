"""Conversations in which the assistant answers plainly: stories on request, questions, passages, letters."""

from answers import Speaker
from grammar import Teller, tidy
from pages import letter
from plot import animal, person
from stories import lost, quarrel, story
from world import THINGS

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You answer questions about Wrenhaven.",
    "You are a friendly helper.",
    "Answer in plain words.",
    "You tell stories and answer questions.",
]


def ask_story(rng):
    """A request for a story and a story that keeps to it."""
    k = rng.random()
    if k < 0.3:
        hero = animal(rng)
        about = f"a {hero.kind}" if rng.random() < 0.6 else hero.first
        p = story(rng, rng.uniform(0.1, 0.4), hero=hero)
    elif k < 0.65:
        hero = person(rng)
        about = rng.choice(
            [f"a {hero.kind}", f"a {hero.trait} {hero.kind}", f"{hero.name}, the {hero.kind}", f"a {hero.kind} called {hero.name}"]
        )
        p = story(rng, rng.uniform(0.1, 0.4), hero=hero)
    else:
        item = rng.choice(list(THINGS))
        p = (lost if rng.random() < 0.6 else quarrel)(rng, rich=rng.uniform(0.1, 0.4), item=item)
        p.paragraphs = p.result()
        about = rng.choice([f"a {item}", f"a {p.X.bare}"]) if rng.random() < 0.6 else f"a {p.P.kind} and a {item}"
    t = Teller(rng, True)
    ask = tidy(
        t.expand(
            f"[Tell me a story about {about}|Write a [short |]story about {about}|Can you tell me a story about {about}|I would like to hear a story about {about}|A story about {about}, please]."
        )
    )
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
