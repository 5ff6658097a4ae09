"""Plots between villagers: contests, care, fables, lessons, strangers, bargains, promises.

Each plot draws its people, things and places, lets one event cause the next, hands the events to `grammar.Story`
and keeps question-and-answer pairs about what happened. It knows nothing of the chat format.
"""

from grammar import Entity
from plot import Plot, animal, at, other, person, thing
from world import ANIMALS, FOODS, HE_JOBS, JOBS, SHE_JOBS, THINGS, WEATHER


def contest(rng, **kw):
    p = Plot(rng, **kw)
    game, win = rng.choice(
        [
            ("the boat race", "cross the line first"),
            ("the pie contest", "bake the best pie"),
            ("the swimming race", "reach the island first"),
            ("the kite contest", "fly the highest kite"),
            ("the singing contest", "sing the best song"),
            ("the snow race", "reach the mill first"),
            ("the pumpkin show", "grow the largest pumpkin"),
            ("the fishing day", "catch the biggest fish"),
        ]
    )
    p.opening()
    p.add(f"[every {p.season}|once a year] the village @@hold {game}")
    p.add(f"{{P}} @want to {win}", "and")
    p.ask("What did {P!} want to win?", f"{{P!}} wanted to win {game}.")
    p.add("{P} @practise [every day|for weeks|in secret|before work]")
    p.add("{H.a} @@be [better|faster|the best of all|the winner of last year]", "but")
    p.para()
    p.add(f"[at last|then] the great day @@come and {rng.choice(WEATHER[p.weather][0])}")
    p.some("[everybody @@stand along the wall|people @+cheer and @+wave|the children @+sit on the wall]")
    p.add("[at first|from the start] {P} @be [ahead|behind|nervous]")
    p.add("[in the middle|halfway] {H} @have bad luck and @lose [" + ("an oar|" if "boat" in game else "") + "{H.his} balance|a shoe]")
    choice = rng.choice(["help", "win", "lose"])
    if choice == "help":
        p.add("{P} @can easily win now", ".")
        p.add("{P} @stop and @help {H.him}", "but")
        p.add("a third person @@win and {PH} @be last", "so")
        p.speak("H", "[Why did you stop|You could have won|Why did you help me]?", "ask")
        p.speak("P", "[A prize is small and a friend is big|I did not want to win like that|It would have been no fun].")
    elif choice == "win":
        p.add("{P} @go on without looking back and @win", "so")
        p.speak("H", "[Well done|You have earned it|Next year I will beat you]!", "cry")
        p.speak("P", "[You were very good too|It was close|I had some luck], [let us share the prize|thank you].")
    else:
        p.add("{H} @do not give up and @win by [a hair|a nose|one point]", "but")
        p.add(p.feel("sad"), "so")
        p.speak("H", "[You were wonderful|It was so close|Nobody ever made it so hard for me]!", "cry")
        p.speak("P", "[Then I will try again next year|Thank you, I did my best|I have learned a lot].")
    p.ask("Did {P!} win?", {"help": "No, {P!} stopped to help {H!}.", "win": "Yes, {P!} won.", "lose": "No, {H!} won."}[choice])
    p.ending("proud")
    return p


def illness(rng, **kw):
    p = Plot(rng, **kw)
    food = rng.choice(["vegetable soup", "honey cake", "mint tea", "porridge", "fish stew"])
    a = rng.choice(p.places)
    p.opening()
    p.add("{P.his} [neighbour|friend] @@be {H.a}" if p.P.pronoun != "I" else "my neighbour @@be {H.a}")
    p.add(p.when() + " {H} @do not come out of the house")
    p.some("[no smoke @@rise from the chimney|the shutters @+be closed|the dog @@whine at the door]", ".")
    p.add("{P} @be worried and @knock at the door", "so")
    p.add("{H} @lie in bed with a [fever|bad cough|sore throat]")
    p.ask("What was wrong with {H!}?", "{H!} was ill in bed.")
    p.speak("H", "[I can not get up|I am so weak|I can not work today].")
    p.speak("P", "[Do not worry|Stay in bed|Lie still], [I will cook for you|I will do your work today|I will fetch the doctor].")
    p.para()
    p.add(f"{{P}} @make {food} and @bring it to the bed")
    p.some(f"{{P}} @run to the {a} for [herbs|honey|the doctor|dry wood]")
    if p.H.job:
        p.add("then {P} @go to work in {H.his} place: all day {P.he} " + rng.choice(JOBS[p.H.job][1]))
        p.some("it @@be harder than it @@look", ".", 0.7)
    p.some("in the evening {P} @read {H.him} a story", ".", 0.5)
    p.para()
    p.add("[after three days|a week later|slowly] {H} @get better")
    p.speak("H", "[I will never forget this|You are the best neighbour in Wrenhaven|You saved me].")
    p.speak("P", "[You would do the same for me|That is what friends are for|Just stay well].")
    p.ending()
    return p


def fable(rng, **kw):
    kw["hero"] = kw.get("hero") if kw.get("hero") is not None and hasattr(kw["hero"], "animal") else animal(rng)
    p = Plot(rng, **kw)
    kind = rng.choice([k for k in ANIMALS if k != p.P.kind])
    H = animal(rng, kind)
    for _ in range(8):
        if H.pronoun != p.P.pronoun:
            break
        H = animal(rng, kind)
    p.H = H
    p.t.slots["H"] = H
    p.t.slots["PH"] = Entity(f"{p.P.name} and {H.name}", "they", ["the two animals", "both of them"])
    eats = ANIMALS[p.P.kind][3].split(" and ")[0].split(",")[0]
    a = rng.choice(p.places)
    p.opening()
    sort = rng.choice(["trick", "share", "boast", "swap"])
    if sort == "trick":
        p.add(p.when() + f" {{P}} @see {{H.a}} with a [big|fine] piece of [cheese|cake|bread] {at(a)}")
        p.speak("P", "[What a lovely voice you have|You sing so well|Everyone says you are the best singer], please sing for me.")
        p.add("{H} @be [flattered|proud] and @begin to sing", "so")
        p.add("the food @@fall to the ground and {P} @run off with it", "and")
        p.speak("P", "[Never trust sweet words|Thank you for the meal]!", "cry")
        p.add("{H} @learn to be careful with flattery")
        p.ask("How did {P!} trick {H!}?", "{P!} praised {H.his} voice.")
    elif sort == "share":
        p.add(f"[that winter|one hard year] there @@be little to eat and {{P}} @find only a few {eats if eats.endswith('s') else 'crumbs'}")
        p.add(p.when() + " {H.a} @@come by, thin and cold")
        p.speak("H", "[Please give me something to eat|I have eaten nothing for two days|Can you spare a little]" + ".")
        p.add("{P} @have hardly enough for {P.self}", ".")
        p.add("{P} @share everything", "but")
        p.para()
        p.add("[in spring|some weeks later] {P} @get caught in a [trap|net|hedge]")
        p.add("{H} @hear the cry and @" + rng.choice(["bite through the rope", "run for help", "pull {P.him} out"]), "and")
        p.speak("H", "[You helped me first|A good deed comes back|Now we are even].")
        p.ask("Why did {H!} help {P!}?", "Because {P!} had shared food with {H.him}.")
    elif sort == "boast":
        p.add("{P} @boast [all day|to everyone]")
        p.speak("P", "[Nobody is as quick as I am|I am the finest animal in the land|I am never afraid].")
        p.speak("H", "[Then let us see|Shall we have a race to the " + a + "|Prove it].")
        p.add(
            rng.choice(
                [
                    "{P} @laugh and @lie down for a nap on the way",
                    "{P} @stop to look at {P.self} in the water",
                    "a leaf @@fall and {P} @jump with fright",
                ]
            )
        )
        p.add("{H} @go on [slowly but surely|step by step] and @be there first", "and")
        p.add("{P} @be very quiet after that", "so")
        p.ask("Who won?", "{H!} won.")
    else:
        p.add(p.when() + " {P} @meet {H.a}")
        p.speak("P", "[You have it so good|I wish I could live like you], let us change places for a day.")
        p.add(f"{{H}} @agree, so {{P}} @go to {ANIMALS[kind][2]}", ".")
        p.add(f"there @@be nothing to eat but {ANIMALS[kind][3]}")
        p.add("{P} @be [cold|hungry|unhappy] and {H} @feel no better", "so")
        p.add("in the evening each of them @@run home [as fast as possible|without a word]")
        p.ask("What did {P!} and {H!} do?", "They changed places for a day.")
    if rng.random() < 0.5:
        p.add(
            {
                "trick": "[sweet words can cost a good meal|who listens to flattery pays for it]",
                "share": "[kindness comes back|who shares is never poor]",
                "boast": "[big words are soon forgotten|the loudest is not always the best]",
                "swap": "[home is best|every life has its own troubles]",
            }[sort]
        )
    else:
        p.ending()
    return p


def skill(rng, **kw):
    p = Plot(rng, **kw)
    if not p.H.job:
        p.H = person(
            rng,
            other(p.P.pronoun) if p.P.pronoun in ("he", "she") else None,
            job=rng.choice([j for j in JOBS if j not in HE_JOBS | SHE_JOBS]),
            avoid=(p.P.name,),
        )
        p.t.slots["H"] = p.H
        if p.P.pronoun != "I":
            p.t.slots["PH"] = Entity(f"{p.P.name} and {p.H.name}", "they", ["the two of them"])
    job = p.H.job
    deed = rng.choice(JOBS[job][1]).replace("@", "").split(" and ")[0]
    p.opening()
    p.add(f"{{P}} @want to learn how to {deed}")
    p.ask("What did {P!} want to learn?", f"{{P!}} wanted to learn how to {deed}.")
    p.add("{P} @go to {H.a} and @ask for help", "so")
    p.speak("H", "[It is harder than it looks|You need patience|Come back tomorrow at dawn|Watch me first and then try].")
    p.para()
    p.add("[the first time|on the first day] everything @@go wrong")
    p.some(
        "[the others @+laugh|{P} @hurt {P.his} thumb|{P} @want to cry]" if p.P.pronoun != "I" else "[the others @+laugh|I @hurt my thumb]"
    )
    p.add("[the second time|on the second day] it @@be [no better|only a little better]")
    p.speak("P", "[I will never learn it|I am too stupid for this|My hands do not obey me]" + ".")
    p.speak("H", "[Nobody is born a master|I needed a whole year myself|Every mistake is a step|Do it slowly, and do it again].")
    p.add("{P} @try again and again")
    p.add("{P.his} hands @+grow surer day by day" if p.P.pronoun != "I" else "my hands @+grow surer day by day", "and")
    p.para()
    p.add("[in the third week|one morning|at the end of the month] it @@work [at last|]")
    p.add("{H} @look at it for a long time and @nod")
    p.speak("H", f"[Good work|Now you are almost a {job}|I could not have done it better].")
    p.ending("proud")
    return p


def arrival(rng, **kw):
    p = Plot(rng, **kw)
    a = rng.choice(p.places)
    p.opening()
    origin = rng.choice(["a far country", "the mountains", "an island in the north", "the big town"])
    p.add(p.when() + f" {{H.a}} @@come to the village from {origin}")
    p.ask("Where did {H!} come from?", f"{{H!}} came from {origin}.")
    p.some("{H} @carry only [a small bag|{X.a}|an old suitcase]")
    p.add("[people @+look out of their windows|everyone @@stare]", ".")
    p.add("nobody @@say a word", "but")
    p.some("{H} @sit alone " + at(a), ".", 0.7)
    p.add("{P} @see it and @feel sorry for {H.him}")
    p.speak("P", "[Good day, are you new here|Are you hungry|May I sit with you]?", "ask")
    p.speak("H", "[I know nobody here|I lost my home in a flood|I am looking for work|My boat was broken by the storm].")
    p.para()
    p.add(f"{{P}} @take {{H.him}} to the inn and {{PH}} @eat {rng.choice(list(FOODS))}")
    p.some("{H} @tell [wonderful stories|of far places] and soon others @+listen", ".", 0.7)
    if p.H.job:
        p.add(
            "[the next morning|soon] everybody @@see what {H} @can do: {H} "
            + rng.choice(JOBS[p.H.job][1])
            + " [better than anyone|with great skill]"
        )
    p.add("[after a month|by spring|before long] {H} @have a small house and many friends", "and")
    p.speak("H", "[You were the first who spoke to me|A kind word opened the door|Now this is my home].")
    p.ending()
    return p


def fishing(rng, **kw):
    p = Plot(rng, **kw)
    p.opening()
    catch = rng.choice(["a fish as long as an arm", "an old boot", "{X.a}", "a bottle with a letter inside", "nothing at all"])
    p.add(p.when() + " {P} @row out " + rng.choice(["before sunrise", "with {H.a}", "to the island", "although the sky @@be dark"]))
    p.some(
        rng.choice(
            [
                "the sea @@be as smooth as glass",
                "small waves @+lick the boat",
                "a seal @@look at the boat and @@dive",
                "far out a white sail @@shine",
            ]
        ),
        ".",
    )
    p.add("{P} @throw out the line and @wait")
    p.some("an hour @@go by, then another", ".")
    p.add(
        rng.choice(["[suddenly|at last] something @@pull hard", "the line @@begin to shake", "{P} @be almost asleep when the line @@jump"])
    )
    p.add("{P} @pull and @pull", "and")
    p.add(f"[at the end of the line|on the hook] there @@be {catch}")
    p.ask("What did {P!} catch?", f"{{P!}} caught {catch}.")
    p.para()
    if "bottle" in catch:
        p.add(
            '{P} @open it and @read: "'
            + rng.choice(
                [
                    "Who finds this is my friend.",
                    "Help! I am alone on an island.",
                    "The treasure lies under the oak.",
                    "Greetings from a ship in the north.",
                ]
            )
            + '"'
        )
        p.add(
            rng.choice(
                [
                    "{P} @write an answer and @throw the bottle back",
                    "{P} @keep the letter for ever",
                    "the whole village @@talk about it for weeks",
                ]
            )
        )
    elif "nothing" in catch:
        p.add("{P} @go home with an empty basket")
        p.speak("H", "[Even so you had a fine day|There is soup for two|The fish will come tomorrow|I caught too many, take half of mine].")
        p.add("that @@make up for everything", "and")
    else:
        p.speak("P", "[What a strange catch|Nobody will believe me|Look at this]!", "cry")
        p.add(
            "{H} @laugh "
            + rng.choice(
                [
                    "until {H.he} @cry",
                    "and @shake {H.his} head",
                    "and @help to carry {P.his} things home" if p.P.pronoun != "I" else "and @help to carry my things home",
                ]
            )
        )
    p.ending()
    return p


def flood(rng, **kw):
    p = Plot(rng, **kw)
    danger, signs, work = rng.choice(
        [
            (
                "the flood",
                ["it @@rain for five days", "the river @@climb over its banks"],
                ["@carry sacks of sand", "@bring the old people up the hill", "@open the gate of the mill"],
            ),
            (
                "the fire",
                ["sparks @+fly from the chimney", "the roof of the barn @@begin to burn"],
                ["@fill buckets at the well", "@lead the cows out of the barn", "@tear down the burning planks"],
            ),
            (
                "the great storm",
                ["the sky @@turn black", "the waves @@+throw the boats against the wall"],
                ["@tie up the boats", "@nail boards over the windows", "@pull the nets up the beach"],
            ),
            (
                "the long snow",
                ["snow @@fall for a week", "no cart @can come through"],
                ["@dig a path from door to door", "@share out the bread", "@pull the sledge with the wood"],
            ),
        ]
    )
    p.opening()
    p.add(p.when() + " " + signs[0])
    p.add(signs[1], rng.choice(["and", "."]))
    p.ask("What was the danger?", f"The danger was {danger}.")
    p.add("{P} @be the first to see it and @ring the bell", ".")
    p.add(
        rng.choice(["people @+come running from every side", "doors @+open and lamps @+go on", "everyone @@know what that @@mean"]), "and"
    )
    p.speak("P", "[Quick, every hand counts|There is no time to lose|We can do it if we stay together|Form a line]!", "cry")
    p.para()
    w = rng.sample(work, 2)
    p.add("{P} " + w[0])
    p.add("{H.a} " + w[1], "and")
    p.some("even the children @+help where they @+can", ".")
    p.some("[the hours @@+be long|nobody @@sleep that night|hands @+bleed and backs @+hurt]", ".")
    p.add("[once|in the middle of the night] {H} @slip", ".")
    p.add("{P} @catch {H.him} by the [arm|coat|belt]", "but")
    p.para()
    p.add(f"[at dawn|after two days|by the next evening] {danger} @@be over")
    p.add(
        rng.choice(
            [
                "one roof @@be gone and three carts @@+be broken",
                "the mud @@lie knee deep in the lanes",
                "the whole village @@be tired and dirty",
            ]
        )
    )
    p.add("nobody @@be hurt", "but")
    p.speak("H", "[You saved me|Without your bell we would have slept|We did it together|Now I could eat a whole pot of soup].")
    p.ending("proud")
    return p


def bargain(rng, **kw):
    """A chain of swaps, each for a stated reason."""
    p = Plot(rng, **kw)
    things = rng.sample(sorted(THINGS), 4)
    p.opening()
    goal = thing(rng, things[3])
    p.t.slots["G"] = goal
    p.add("more than anything {P} @want {G.a}", ".")
    p.add("{P} @have no money, only {X.a}", "but")
    p.ask("What did {P!} want?", "{P!} wanted {G.a}.")
    have = "{X.bare}"
    for i in range(rng.randint(1, 3)):
        who = person(rng)
        want = f"a {rng.choice(THINGS[things[i]][0].split('|'))} {things[i]}"
        p.add(
            rng.choice(["[then|soon|a little later] ", f"{at(rng.choice(p.places))} "])
            + f"{{P}} @meet {who.name}, "
            + who.role
            + f", who @@need the {have}"
            + rng.choice(["", " for a journey", " for work", " more than bread"])
        )
        p.add(f"{who.name} @@give {{P.him}} {want} for it", rng.choice(["so", ".", "and"]))
        have = things[i]
    p.para()
    p.add("at last {P} @come to {H.a}, who @@have {G}")
    p.speak("P", f"[Will you take my {have} for it|Would you like to trade|What must I give you for it]?", "ask")
    answer = rng.choice(["yes", "gift", "no"])
    if answer == "yes":
        p.speak("H", "[Gladly|That is just what I was looking for|A fair trade], [here it is|take it|it is yours].")
    elif answer == "gift":
        p.speak("H", "[Keep it|I need nothing], [you walked so far that I will give it to you|you once helped my mother, so take it].")
    else:
        p.speak("H", "[No, it was my father's and I will never sell it|I am sorry, I love it too much].")
        p.add("{P} @be sad at first", ".")
        p.add(f"then {{P}} @see that the {have} @@be just as good", "but")
    p.ask("Did {P!} get it in the end?", "No, {H!} did not want to give it away." if answer == "no" else "Yes, {P!} got it from {H!}.")
    p.ending()
    return p


def surprise(rng, **kw):
    p = Plot(rng, **kw)
    gift = rng.choice(
        [
            "{X.a}",
            "a new coat",
            "a song",
            "a little boat",
            "a painted chair",
            "a basket of " + rng.choice(["apples", "berries", "eggs"]),
            "a " + rng.choice(["honey cake", "mushroom pie", "berry cake"]),
        ]
    )
    p.opening()
    p.add("{H.a} @@have a birthday [the next day|in three days|on Sunday]")
    p.add(f"{{P}} @want to surprise {{H.him}} with {gift}", rng.choice(["and", "so"]))
    p.ask("What was the present?", f"The present was {gift}.")
    p.add(
        rng.choice(
            [
                "{P} @work on it every night when the others @+sleep",
                "{P} @keep it under the bed",
                "{P} @ask half the village for help",
                "it @@be hard to keep the secret",
            ]
        )
    )
    p.some("{H} @see {P.his} lamp burning and @wonder" if p.P.pronoun != "I" else "{H} @see my lamp burning and @wonder", ".")
    p.speak("H", "[What are you doing there|Why are you so tired|Are you hiding something from me]?", "ask")
    p.speak("P", "[Oh, nothing|I can not tell you yet|I am only cleaning|Wait and see].")
    p.some("{H} @be [hurt|puzzled|a little angry]", ".")
    p.para()
    p.add(
        "[on the morning of the birthday|when the day @@come] "
        + rng.choice(
            ["{H} @think that everyone @@have forgotten it", "the house @@be dark and quiet", "{P} @knock at the door with a beating heart"]
        )
    )
    p.add("then [all the neighbours|ten voices|{P} and the others] @+begin to sing", ".")
    p.add(f"{{P}} @give {{H.him}} {gift}")
    p.add("{H} @do not know what to say", rng.choice(["and", "."]))
    p.speak("H", "[So that was your secret|It is beautiful|I thought you had forgotten me|Never in my life was I so happy]!", "cry")
    p.ending()
    return p


def promise(rng, **kw):
    p = Plot(rng, **kw)
    duty, harm, repair = rng.choice(
        [
            ("close the gate of the hen house", "a fox @@come in the night and @@take two hens", "@bring {H.him} two young hens"),
            ("water the beans", "the beans @+dry up in the heat", "@plant new ones and @water them every day"),
            ("feed the horse", "the horse @@break the fence to look for food", "@build a new fence"),
            ("tie up the boat", "the tide @@carry the boat away", "@search the whole coast until the boat @@be found"),
            ("watch the bread in the oven", "the bread @@turn black", "@bake until midnight"),
            ("bring in the washing", "the wind @@blow the shirts into the mud", "@wash everything again"),
            ("light the lamp at the bridge", "a cart @@fall into the river", "@help to pull the cart out"),
        ]
    )
    p.opening()
    p.add(p.when() + " {H.a} @@must go away [for a day|until the next morning|to the town]")
    p.speak("H", f"[Please {duty}|Will you {duty} for me|You must {duty}], [you must not forget it|it is important|I count on you].")
    p.speak("P", "[You can trust me|I promise|Of course I will].")
    p.ask("What did {P!} promise to do?", f"{{P!}} promised to {duty}.")
    p.add(
        rng.choice(
            [
                "there @@be music at the inn",
                "{P} @meet old friends",
                "{P} @find a good book",
                "the day @@be hot and {P} @fall asleep",
                "{P} @play with {X.a} until dark",
            ]
        )
    )
    p.add("{P} @forget [all about it|the promise]", rng.choice(["and", "so"]))
    p.para()
    p.add(harm)
    p.some("{P} @see it in the morning and @turn pale", ".", 0.7)
    p.add(rng.choice(["for a moment {P} @want to [lie|run away|blame the wind]", "{P} @think of a hundred excuses"]))
    p.add("{P} @tell the truth", "but")
    p.speak("P", "[I forgot my promise|It was my fault|I have no excuse], [I am so sorry|I will make it good].")
    p.speak(
        "H", "[I am angry, but you were honest|It takes courage to say that|Everyone forgets something once|Then show me that you mean it]."
    )
    p.add("{P} " + repair)
    p.add(
        rng.choice(
            ["after that {P} never @break a promise again", "{H} @trust {P.him} more than before", "in the end {PH} @laugh about it"]
        )
    )
    return p
