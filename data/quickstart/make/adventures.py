"""Plots of things that happen to somebody: lost and found, errands, rescues, fears, riddles in the night.

Each plot draws its people, things and places, lets one event cause the next, hands the events to `grammar.Story`
and keeps question-and-answer pairs about what happened. It knows nothing of the chat format.
"""

from plot import Plot, animal, at
from world import ANIMALS, FEELINGS, FOODS, THINGS, WILD


def lost(rng, **kw):
    p = Plot(rng, **kw)
    a, b, c = p.places[:3]
    p.opening()
    p.add(
        rng.choice(
            [
                "{P} @have {X.a} that @@be [a gift from {P.his} grandmother|more precious than gold|the best thing in the house]",
                "of all things {P} @love {P.his} {X.bare} most",
                "{P} @own {X.a} and @carry it everywhere",
            ]
        )
    )
    p.para()
    light = THINGS[p.X.kind][3]
    cause = rng.choice(["wind", "crow", "gull", "forgot", "goat", "pocket"] if light else ["forgot", "forgot", "goat", "child"])
    told = {
        "wind": "the wind @@tear {X.him} away",
        "crow": "a crow @@see {X.him} and @@fly off with {X.him}",
        "gull": "a gull @@snatch {X.him}",
        "goat": "a goat @@carry {X.him} off",
        "pocket": "{X} @fall out of {P.his} pocket",
        "forgot": "{P} @put {X.him} down and @forget about {X.him}",
        "child": "a small child @@take {X.him} to play with",
    }[cause]
    p.add(p.when() + f" {{P}} @go to the {a} with {{X.him}}", ".")
    p.some(p.aside(), chance=0.5)
    p.add(rng.choice(["there", "on the way", "[suddenly|in the middle of all that]"]) + " " + told)
    p.add("[in the evening|an hour later|when {P.he} @get home|soon] {P} @see that {X} @be gone", ".")
    p.ask("What did {P!} lose?", "{P!} lost {X.a}.")
    p.some(p.feel("[sad|worried|upset]"), ".", 0.6)
    p.some("{P} @" + FEELINGS["sad"][0][1:], ".", 0.25)
    p.para()
    p.go(b)
    p.add("{P} @look [behind every door|under every stone|everywhere|in every corner]")
    p.add("{X} @be not there", "but")
    p.add("[on the way|there|at the corner] {P} @meet {H.a}")
    p.speak("P", f"[Have you seen my {p.X.kind}|Did you see {p.X.first} anywhere|I have lost my {p.X.kind}. Can you help me]?", "ask")
    hint = {
        "wind": f"The wind blew something over to the {c}",
        "crow": f"A crow has its nest {at(c)}",
        "gull": f"The gulls bring everything to the {c}",
        "goat": f"I saw the goat {at(c)}",
        "pocket": f"You were {at(c)} [yesterday|this morning], [were you not|remember]",
        "forgot": f"Think back. Were you not {at(c)} before",
        "child": f"A little boy played with one {at(c)}",
    }[cause]
    p.speak("H", hint + ("?" if cause in ("forgot", "pocket") else "."), "ask" if cause in ("forgot", "pocket") else "say")
    p.ask("Who helped {P!}?", "{H!} helped {P.him}." if p.P.pronoun != "I" else "{H!} helped me.")
    p.some("{P} @thank {H.him} and @hurry on", ".", 0.5)
    p.para()
    p.add(f"[so|together] {{PH}} @go to the {c}" if rng.random() < 0.6 else f"{{P}} @run to the {c} as fast as {{P.he}} @can")
    p.some(p.sight(c))
    p.add("[there|between two stones|under an old board|in the wet grass|behind a barrel], {P} @find {X.him} [at last|]")
    p.ask("Where was {X}?", f"{{X}} was {at(c)}.")
    p.some("{X} @be [wet|dirty|a little scratched]", ".", 0.5)
    p.speak("P", "[Thank you|You are a true friend], [I would never have found it alone|that was kind of you].")
    if rng.random() < 0.4:
        p.speak("H", "[It was nothing|You are welcome|I am glad I could help|Keep it close to you next time].")
    p.ending()
    return p


def errand(rng, **kw):
    p = Plot(rng, **kw)
    a, c = p.places[:2]
    food = rng.choice(list(FOODS))
    load = rng.choice(
        [f"a basket with {food}", "a letter", "a bag of medicine", "a sack of flour", "{X.a}", f"a pot of {food}", "a jar of honey"]
    )
    p.opening()
    p.add(p.when() + f" {{P}} @must bring {load} to {{H.a}} {at(c)}")
    p.ask("Where did {P!} have to go?", f"{{P!}} had to go to the {c}.")
    p.some("{H} @be [ill|alone|waiting|too old to come]")
    if rng.random() < 0.5:
        p.speak("P", "[I will be back before dark|It is not far|I know the way|Nothing will stop me].")
    p.para()
    trouble, clauses, ways = rng.choice(
        [
            (
                "fog",
                ["on the way thick fog @@come up from the sea", "{P} @can not see the path any more"],
                [
                    "{P} @listen for the [chapel bell|waves] and @follow the sound",
                    "{P} @hold on to the wall and @go step by step",
                    "{P} @light a lantern and @go on slowly",
                ],
            ),
            (
                "the storm",
                ["halfway a storm @@break out", "rain @@beat into {P.his} face"],
                [
                    "{P} @hide under a rock until it @@be over",
                    "{P} @wait in an old hut and @sing to stay brave",
                    "a farmer @@let {P.him} rest in the barn",
                ],
            ),
            (
                "the broken bridge",
                ["the bridge @@be broken", "the river @@be wide and cold"],
                [
                    "{P} @find flat stones and @jump from one to the next",
                    "the ferryman @@take {P.him} across for a song",
                    "{P} @lay a long plank over the gap",
                ],
            ),
            (
                "the snow",
                ["snow @@fall and @@hide the path", "{P} @sink in up to the knees"],
                ["{P} @tie two boards under {P.his} boots", "{P} @follow the tracks of a fox", "{P} @walk from tree to tree"],
            ),
            (
                "a dog",
                ["a big dog @@stand in the way", "it @@growl and @@show its teeth"],
                ["{P} @give it a piece of bread", "{P} @speak to it in a low voice", "{P} @stand still until it @@wag its tail"],
            ),
            (
                "hunger",
                ["after an hour {P} @be very hungry", "the basket @@smell wonderful"]
                if "basket" in load or "pot" in load
                else ["the road @@be long", "{P.his} feet @+hurt"],
                ["{P} @eat some berries by the road", "{P} @think of {H.him} and @go on", "{P} @sing a song to forget about it"],
            ),
        ]
    )
    p.add(clauses[0])
    p.add(clauses[1], rng.choice(["and", "."]))
    p.some(p.feel("[afraid|worried|tired]"), ".", 0.5)
    if rng.random() < 0.4:
        p.speak("P", "[What shall I do now|What now|How can I go on]?", "ask")
    p.some("{P} @do not want to turn back", "but", 0.5)
    p.add(rng.choice(ways))
    p.ask("What was the trouble on the way?", f"The trouble was {trouble}.")
    p.para()
    p.add(f"[at last|in the end|long after noon] {{P}} @reach the {c}")
    p.some(p.sight(c), ".", 0.4)
    p.add("{H} @open the door" + rng.choice([" and @smile", " with wide eyes", " and @can not believe it"]), "and")
    p.speak("H", "[You came through all that|Come in, you are wet and cold|I was so worried|What a brave heart you have]!", "cry")
    p.add(
        rng.choice(
            [
                f"{{H}} @give {{P.him}} a plate of {rng.choice(list(FOODS))}",
                "{H} @put a dry blanket round {P.him}",
                "{PH} @sit by the fire and @drink mint tea",
            ]
        )
    )
    p.ending()
    return p


def making(rng, **kw):
    p = Plot(rng, **kw)
    dish = rng.choice(list(FOODS))
    need = rng.choice([x for x in FOODS[dish][0] if x not in ("water", "time", "salt")])
    feast = rng.choice(
        [
            "the harvest feast",
            "{P.his} grandmother's birthday",
            "the spring fair",
            "the wedding of a friend",
            "the last day of school",
            "a sick neighbour",
        ]
    )
    a, b = p.places[:2]
    p.opening()
    p.add(p.when() + f" {{P}} @want to make {dish} for {feast}")
    p.ask("What did {P!} want to make?", f"{{P!}} wanted to make {dish}.")
    p.add(f"[the shelf @@be empty|there @@be no more of the {need}|{{P}} @have no {need.replace('an ', '')} left]", "but")
    p.para()
    p.add(f"{{P}} @go to {{H.a}} and @ask for {need}")
    price = rng.choice(["{X.a}", "a hand with the heavy work", "a song", "a bucket of water from the well", "a new broom"])
    p.speak("H", f"[I can give you {need}, but first I need {price}|You may have {need} if you bring me {price}].")
    p.some(p.feel("[surprised|puzzled|glad]"), ".", 0.4)
    if price == "{X.a}":
        p.go(a)
        p.add("[there|after a long search] {P} @find {X.him} [behind a box|in a corner|under some old sacks]")
    else:
        p.add("{P} @do it [at once|with a smile|without a word of complaint]")
    p.add("{H} @keep {H.his} word", "and")
    p.para()
    steps = FOODS[dish][1]
    p.add("[back at home|in {P.his} kitchen] {P} @begin to cook")
    for step in steps[: rng.randint(1, len(steps))]:
        verb, rest = step.split(" ", 1)
        if rng.random() < 0.6 and verb.isalpha() and "until it" not in rest:
            p.add("[then|next|after that|] {P} @" + verb + " " + rest.split(" and ")[0])
    if rng.random() < 0.5:
        mishap = rng.choice(
            ["the cat @@jump on the table", "the fire almost @@go out", "{P} @drop the big spoon", "the pot @@begin to boil over"]
        )
        p.add("[suddenly|just then] " + mishap)
        p.add("{P} @be quick and @save [everything|the dish|the day]", "but")
    p.add(f"[when everything @@be ready|an hour later|in the evening], the whole house @@smell of {dish}")
    p.some("people @+come from every lane", ".", 0.5)
    p.speak("H", f"[This is the best {dish} in the world|I have never tasted anything so good|May I have some more]!", "cry")
    p.add(
        f"it @@be {FOODS[dish][2]}"
        if rng.random() < 0.3 and not FOODS[dish][2].startswith(("the children", "they", "it", "every"))
        else "{P} @be [very proud|red with joy|tired and proud]"
    )
    p.ending()
    return p


def rescue(rng, **kw):
    p = Plot(rng, **kw)
    kind = rng.choice([k for k in ANIMALS if k != p.P.kind])
    A = animal(rng, kind)
    p.t.slots["A"] = A
    size = ANIMALS[kind][6]
    place = rng.choice(p.places)
    spots = ["in the mud", "between two rocks", "in an old net", "behind a broken fence"]
    spots += (
        ["at the bottom of the well", "on the thin ice of the pond", "in a thorn bush", "on a small rock in the middle of the river"]
        if size < 6
        else ["in a deep ditch"]
    )
    spot = rng.choice(spots)
    p.opening()
    p.add(p.when() + f" {{P}} @hear a [strange|weak|sad] cry near the {place}")
    p.some(p.aside(), ".", 0.5)
    p.add(f"{{P}} @follow the sound and @find {{A.a}} that @@be stuck {spot}")
    p.ask("What did {P!} find?", f"{{P!}} found {{A.a}} that was stuck {spot}.")
    p.some("{A} @tremble with [fear|cold]", ".", 0.6)
    p.speak("P", "[Do not be afraid|Stay still|Wait, little one|I will help you], [I will get you out|it will soon be over|I am here].")
    p.para()
    tries = [
        "@pull with all {P.his} might",
        "@push from behind",
        "@throw a rope",
        "@call for help",
        "@try with a long stick",
        "@lie down and @stretch out a hand",
    ]
    t1, t2 = rng.sample(tries, 2)
    p.add("{P} " + t1)
    p.add("it @@do not work", "but")
    p.some("then {P} " + t2, ".", 0.5)
    p.add("{P} @be too weak alone" if t2 != "@call for help" else "nobody @@come at first", "but")
    p.add("[just then|by good luck|after a while] {H.a} @@come along the path")
    p.speak("H", "[What is the matter|What happened here|Can I help]?", "ask")
    tool = rng.choice(["a ladder", "a rope", "a long plank", "a basket on a rope", "a strong net", "a warm blanket"])
    p.add(f"{{H}} @fetch {tool}")
    p.add("{PH} @work side by side", "and")
    p.add("[slowly|step by step|with one last pull] {PH} @get {A.him} out")
    p.ask("How did they get {A} out?", f"They used {tool}.")
    p.para()
    p.add(
        rng.choice(
            [
                "{A} @lick {P.his} hand"
                if kind not in ("hen", "owl", "gull", "crab", "frog", "duck", "goose", "crow", "heron")
                else "{A} @look at {P.him} for a long time",
                "{PH} @give {A.him} [something to eat|a warm place by the stove]",
                "{A} @shake {A.self} and @look up",
            ]
        )
    )
    p.add(
        rng.choice(
            [
                "[from then on|after that] {A} @follow {P.him} everywhere",
                f"in the evening {{A}} @go home to {ANIMALS[kind][2]}",
                "the next morning {A} @leave a small gift at the door",
                "{A} never @forget {P.him}",
            ]
        )
    )
    p.ending()
    return p


def quarrel(rng, **kw):
    p = Plot(rng, **kw)
    p.opening()
    a, b = p.places[:2]
    p.add("{P.his} best friend @@be {H.a}" if p.P.pronoun != "I" else "my best friend @@be {H.a}")
    p.add(p.when() + f" {{PH}} @find {{X.a}} {at(a)}")
    p.ask("What did they find?", "They found {X.a}.")
    p.speak("P", "[I saw it first|It is mine|It belongs to me|Give it to me]!", "cry")
    p.speak("H", "[No, I saw it first|That is not fair|You always take everything|You are wrong]!", "cry")
    p.add(
        "{PH} @pull and @shout until "
        + rng.choice(["{X} @break in two", "{X} @fall into the mud", "{X} @roll into the water", "people @+stop and @+stare"])
    )
    p.add("{H} @walk away without [a word|looking back]", ".")
    p.add("{P} @go home angry", "and")
    p.para()
    p.add("[for three days|for a whole week|all the next day] {PH} @do not speak")
    p.some("{P} @" + "try to play alone" if p.P.child else "{P} @try to think of other things")
    p.add("nothing @@be [any fun|the same] without {H.him}", "but")
    p.some(p.feel("lonely"), ".", 0.5)
    p.add(
        rng.choice(
            [
                f"then the {p.weather if p.weather not in ('heat', 'sunshine') else 'storm'} @@come and {{H}} @need help with the [roof|boat|sheep]",
                "then {P} @hear that {H} @be ill",
                f"one evening {{PH}} @meet by chance {at(b)}",
            ]
        )
    )
    p.add("{P} @take a deep breath and @go to {H.him}", ".")
    p.speak("P", "[I am sorry|I was wrong|Forgive me], [you matter more than that old thing|I was selfish|I have missed you].")
    p.speak("H", "[I am sorry too|I was just as silly|Let us forget it|I have missed you too].")
    p.ask("How did the quarrel end?", "{P!} said sorry and they were friends again.")
    p.add(
        rng.choice(
            [
                "{PH} @mend {X.him} with glue and string and @share {X.him}",
                "{PH} @give {X.him} to a child who @@have nothing",
                "from then on each of them @@have {X.him} for one week",
            ]
        )
    )
    p.ending()
    return p


def fear(rng, **kw):
    p = Plot(rng, **kw)
    what, scene, deed = rng.choice(
        [
            ("the dark", "the lamp @@go out", "@count {P.his} steps and @walk through the dark"),
            ("the sea", "a child @@fall into the water", "@jump in and @pull the child to the shore"),
            ("thunder", "a storm @@come and the sheep @@+run away", "@go out into the thunder and @bring them home"),
            ("high places", "a kitten @@sit on the roof and @@cry", "@climb up without looking down"),
            ("dogs", "a dog with a thorn in its paw @@lie at the door", "@kneel down and @pull the thorn out"),
            ("strangers", "a wet stranger @@knock at the door", "@open the door and @offer a chair by the fire"),
            ("deep water", "the rope of the boat @@break and an old man @@drift away", "@take the little boat and @row after him"),
            ("the old cave", "a goat @@run into the cave", "@take a lantern and @follow it"),
        ]
    )
    p.opening()
    p.add(f"{{P}} @be afraid of {what}")
    p.ask("What was {P!} afraid of?", f"{{P!}} was afraid of {what}.")
    p.some("[the others @+laugh about it|nobody @@know about it|{P} never @speak about it]")
    if rng.random() < 0.6:
        p.speak(
            "H",
            "[Everyone is afraid of something|It is no shame to be afraid|Courage comes when you need it|Take one small step at a time].",
        )
    p.para()
    p.add(p.when() + " " + scene)
    p.some(p.aside(), ".", 0.4)
    p.add("[nobody else @@be there|there @@be no time to call for help|all the others @@+be far away]")
    p.add("{P.his} heart @@beat fast and {P.his} hands @+shake" if p.P.pronoun != "I" else "my heart @@beat fast and my hands @+shake")
    p.add("{P} " + deed, "but")
    p.add("[it @@be not easy|it @@take a long time|it @@be over before {P} @can think]")
    p.para()
    p.add("[when {H} @hear about it|that evening|later], {H} @shake {P.his} hand")
    p.speak("H", "[Were you not afraid|How did you do that|Is it true]?", "ask")
    p.speak(
        "P",
        "[I was afraid, but I went on|I was so busy that I forgot my fear|Yes, I was, and I still am a little|A brave heart can beat fast too].",
    )
    p.ending("proud")
    return p


def mystery(rng, **kw):
    p = Plot(rng, **kw)
    place = rng.choice(p.places)
    A = animal(rng, rng.choice([k for k in WILD if k not in (p.P.kind, "seal")]))
    p.t.slots["A"] = A
    odd, clue, why = rng.choice(
        [
            ("every night something @@steal the bread from the window", "small tracks in the mud", "{A} @have young ones to feed"),
            (f"every night a strange noise @@come from the {place}", "a [feather|tuft of hair] on a nail", "{A} @play with an old tin cup"),
            ("one by one the shiny spoons @+disappear", "a trail of crumbs", "{A} @love everything that @@shine"),
            ("someone @@ring the little bell at midnight", "a [thread|bite mark] on the rope", "{A} @pull at the rope to reach the nuts"),
            (
                "each morning a gift of [nuts|shells|berries] @@lie at the door",
                "small wet prints on the step",
                "{A} @want to say thank you for an old kindness",
            ),
            ("the milk in the bowl @@be gone every morning", "white drops on the grass", "{A} @be hungry and @have no home"),
        ]
    )
    p.opening()
    p.add(f"[then something strange @@begin|that {p.season} something odd @@happen]")
    p.add(odd)
    p.some("[nobody @@have an answer|people @+begin to whisper|some people @+speak of ghosts]")
    if rng.random() < 0.7:
        p.speak("H", "[It must be a ghost|It is only the wind|I think it is a thief|Someone should keep watch].")
    p.speak("P", "[I will find out|I do not believe in ghosts|Tonight I will stay awake|There must be a reason].")
    p.para()
    p.add("[that night|the next night|when it @@get dark] {P} @hide behind [the door|a barrel|the wall|an old cart] and @wait")
    p.some("the moon @@be [full|thin|hidden behind clouds]")
    if rng.random() < 0.6:
        p.add(f"{{P}} @find {clue}", ".")
    p.add("[at midnight|after a long time|just before dawn] something @@move", "and")
    p.add("it @@be {A.a}", ".")
    p.ask("Who was behind it?", "It was {A.a}.")
    p.add(why)
    p.some("{P} @laugh [quietly|with relief]", ".", 0.6)
    p.para()
    p.add("[the next day|in the morning] {P} @tell {H.him} everything")
    p.add(
        rng.choice(
            [
                "{PH} @put out some food for {A.him} every evening",
                "{PH} @build {A.him} a little house of wood",
                "nobody @@be angry and {A} @get a name",
                "{PH} @keep the secret",
            ]
        )
    )
    p.ending()
    return p
