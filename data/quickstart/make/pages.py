"""Pages: stories, letters, recipes, dialogues, portraits, moments, and the talk of old Captain Brand.

The captain speaks here as a character; the assistant of `talk.py` never speaks like him.
"""

from answers import Speaker, join
from grammar import Entity, Teller, tidy
from plot import person
from scenes import Scene
from stories import story
from world import (
    ANIMALS,
    FOODS,
    JOBS,
    PLACES,
    SEASONS,
    THINGS,
    WEATHER,
)

CAPTAIN_CALLS = ["Ahoy, shipmate!", "Aye, aye, shipmate!", "Ahoy there!", "Blow me down!"]
CAPTAIN_OATHS = ["by my beard", "as sure as the tide", "by the seven seas", "mark my words"]
COUPLETS = {
    "job": [
        "Work with a will and work with a song, and the day at sea is never long.",
        "A steady hand and an honest crew will bring the old ship safely through.",
    ],
    "place": [
        "From port to port the captain may roam, but every good ship comes sailing home.",
        "The stars above and the sea below will show an old sailor the way to go.",
    ],
    "animal": [
        "Fur or feather, claw or fin, the sea lets every creature in.",
        "Great or small, by land or sea, every creature sails with me.",
    ],
    "thing": [
        "Keep it dry and keep it near, and you will sail without a fear.",
        "A thing well made and a thing well kept is worth more than a night well slept.",
    ],
    "food": [
        "A full pot and a fire bright will warm a sailor through the night.",
        "Stir it slow and serve it hot, the best of friends is a cooking pot.",
    ],
    "weather": [
        "Let it blow and let it pour, the brave old ship will come to shore.",
        "Wind and wave and rain and sun, the sea has time for every one.",
    ],
    "feeling": [
        "Dry your eyes and lift your head, the sky at dawn is gold and red.",
        "The darkest night at sea will end, so hold the rope and trust a friend.",
    ],
}


def letter(rng):
    """A letter, its sender's request phrase included."""
    P, Q = person(rng), person(rng)
    w = rng.choice(list(WEATHER))
    t = Teller(rng, True, P=Entity("I", "I"))
    news = story(rng, 0.25, hero=P, first_person=True)
    body = [
        t.expand(
            rng.choice(
                [
                    "[how are you|I hope you are well|thank you for your letter|I often think of you]",
                    f"here in Wrenhaven {rng.choice(WEATHER[w][0])}",
                    "I have news for you",
                ]
            )
        ),
    ]
    mid = " ".join(news.paragraphs)
    end = t.expand(
        "[please write soon|come and visit us in "
        + rng.choice(list(SEASONS))
        + "|give my love to your family|I will write again next week]"
    )
    fix = lambda x: tidy(x) + ("?" if x.startswith("how are") else ".")
    greet = "Dear " + rng.choice([Q.name, Q.name, "friend", "grandmother", "uncle"]) + ","
    bye = rng.choice(["Your friend", "Yours", "With love", "Best wishes"]) + ",\n" + P.name
    return f"{greet}\n\n{fix(body[0])} {mid}\n\n{fix(end)}\n\n{bye}", P, Q


def exchange(rng):
    """Two villagers talk; the lines are questions and answers from the same knowledge."""
    P, s = person(rng), Speaker(rng)
    Q = person(rng, avoid=(P.name,))
    lines = [
        f"{P.name}: " + rng.choice(["Good morning!", "Hello, " + Q.name + "!", "There you are at last.", "Have you a moment?"]),
        f"{Q.name}: "
        + rng.choice(
            [
                "Good morning, " + P.name + ".",
                "Hello! What is it?",
                "Of course. What would you like to know?",
                "I was at work. What is the matter?",
            ]
        ),
    ]
    for _ in range(rng.randint(1, 3)):
        q, a, _t = s.question(rng.choice(Speaker.TOPICS[:-1]))
        lines += [f"{P.name}: {q}", f"{Q.name}: {a}"]
    lines += [
        f"{P.name}: " + rng.choice(["Thank you.", "That is good to know.", "I did not know that.", "You know so much!"]),
        f"{Q.name}: " + rng.choice(["You are welcome.", "Come again.", "Good luck!", "See you tomorrow."]),
    ]
    return "\n".join(lines)


def captain(rng):
    """Captain Brand, a character, talks in the way that only he has."""
    s = Speaker(rng)
    P = person(rng)
    topic = rng.choice(list(COUPLETS))
    q, a, _ = s.question(topic)
    intro = rng.choice(
        [
            f"Old Captain Brand sat at the harbour when {P.name} came by.",
            f"{P.name} met Captain Brand, who had sailed the sea for fifty years.",
            f"Captain Brand had a white beard and a story for everyone. One day {P.name} sat down beside him.",
        ]
    )
    head = a[:-1] if a.endswith(".") else a
    mark = f", {rng.choice(CAPTAIN_OATHS)}," if a.endswith(".") else ""
    tail = rng.choice(
        [
            f'Then the captain sang: "{rng.choice(COUPLETS[topic])}"',
            f"{P.name} laughed, for nobody else in the village spoke like that.",
            f'"{rng.choice(COUPLETS[topic])}" sang the old man.',
            "Then he looked out over the sea.",
        ]
    )
    return f'{intro} {P.name} {"asked" if q.endswith("?") else "said"}, "{q}" "{rng.choice(CAPTAIN_CALLS)} {head}{mark}" said the captain. {tail}'


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
    lines = (
        [f"{i + 1}. {s.capitalize()}." for i, s in enumerate(steps)]
        if rng.random() < 0.5
        else [" ".join(tidy(rng.choice(["", "", "then ", "now "]) + s) + "." for s in steps)]
    )
    return (
        f"{head}\n\n{body}\n"
        + "\n".join(lines)
        + (
            "\n" + rng.choice(["Serve it with a smile.", "Enough for four.", "Enough for the whole family.", "Eat it with good friends."])
            if rng.random() < 0.6
            else ""
        )
    )


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
