"""Plots: small simulations with a goal, an obstacle, help and an ending, told event by event.

Every plot draws its people, things and places from `world.py`, lets one event cause the next, and hands
the events to `grammar.Story`. It also keeps question-and-answer pairs about what happened.
It knows nothing of the chat format.
"""
from grammar import Entity, Teller, tidy
from plot import Plot, animal, at, other, person, thing
from world import ANIMALS, FEELINGS, FOODS, HE_JOBS, JOBS, SHE_JOBS, THINGS, WEATHER, WILD


def lost(rng, **kw):
    p = Plot(rng, **kw)
    a, b, c = p.places[:3]
    p.opening()
    p.add(rng.choice(["{P} @have {X.a} that @@be [a gift from {P.his} grandmother|more precious than gold|the best thing in the house]",
                      "of all things {P} @love {P.his} {X.bare} most", "{P} @own {X.a} and @carry it everywhere"]))
    p.para()
    light = THINGS[p.X.kind][3]
    cause = rng.choice(["wind", "crow", "gull", "forgot", "goat", "pocket"] if light else ["forgot", "forgot", "goat", "child"])
    told = {"wind": "the wind @@tear {X.him} away", "crow": "a crow @@see {X.him} and @@fly off with {X.him}", "gull": "a gull @@snatch {X.him}",
            "goat": "a goat @@carry {X.him} off", "pocket": "{X} @fall out of {P.his} pocket", "forgot": "{P} @put {X.him} down and @forget about {X.him}",
            "child": "a small child @@take {X.him} to play with"}[cause]
    p.add(p.when() + f" {{P}} @go to the {a} with {{X.him}}", ".")
    p.some(p.aside(), chance=0.5)
    p.add(rng.choice(["there", "on the way", "[suddenly|in the middle of all that]"]) + " " + told)
    p.add("[in the evening|an hour later|when {P.he} @get home|soon] {P} @see that {X} @be gone", ".")
    p.ask(f"What did {{P!}} lose?", f"{{P!}} lost {{X.a}}.")
    p.some(p.feel("[sad|worried|upset]"), ".", 0.6)
    p.some("{P} @" + FEELINGS["sad"][0][1:], ".", 0.25)
    p.para()
    p.go(b)
    p.add("{P} @look [behind every door|under every stone|everywhere|in every corner]")
    p.add("{X} @be not there", "but")
    p.add("[on the way|there|at the corner] {P} @meet {H.a}")
    p.speak("P", f"[Have you seen my {p.X.kind}|Did you see {p.X.first} anywhere|I have lost my {p.X.kind}. Can you help me]?", "ask")
    hint = {"wind": f"The wind blew something over to the {c}", "crow": f"A crow has its nest {at(c)}", "gull": f"The gulls bring everything to the {c}",
            "goat": f"I saw the goat {at(c)}", "pocket": f"You were {at(c)} [yesterday|this morning], [were you not|remember]", "forgot": f"Think back. Were you not {at(c)} before",
            "child": f"A little boy played with one {at(c)}"}[cause]
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
    load = rng.choice([f"a basket with {food}", "a letter", "a bag of medicine", "a sack of flour", "{X.a}", f"a pot of {food}", "a jar of honey"])
    p.opening()
    p.add(p.when() + f" {{P}} @must bring {load} to {{H.a}} {at(c)}")
    p.ask(f"Where did {{P!}} have to go?", f"{{P!}} had to go to the {c}.")
    p.some("{H} @be [ill|alone|waiting|too old to come]")
    if rng.random() < 0.5:
        p.speak("P", "[I will be back before dark|It is not far|I know the way|Nothing will stop me].")
    p.para()
    trouble, clauses, ways = rng.choice([
        ("fog", ["on the way thick fog @@come up from the sea", "{P} @can not see the path any more"],
         ["{P} @listen for the [chapel bell|waves] and @follow the sound", "{P} @hold on to the wall and @go step by step", "{P} @light a lantern and @go on slowly"]),
        ("the storm", ["halfway a storm @@break out", "rain @@beat into {P.his} face"],
         ["{P} @hide under a rock until it @@be over", "{P} @wait in an old hut and @sing to stay brave", "a farmer @@let {P.him} rest in the barn"]),
        ("the broken bridge", ["the bridge @@be broken", "the river @@be wide and cold"],
         ["{P} @find flat stones and @jump from one to the next", "the ferryman @@take {P.him} across for a song", "{P} @lay a long plank over the gap"]),
        ("the snow", ["snow @@fall and @@hide the path", "{P} @sink in up to the knees"],
         ["{P} @tie two boards under {P.his} boots", "{P} @follow the tracks of a fox", "{P} @walk from tree to tree"]),
        ("a dog", ["a big dog @@stand in the way", "it @@growl and @@show its teeth"],
         ["{P} @give it a piece of bread", "{P} @speak to it in a low voice", "{P} @stand still until it @@wag its tail"]),
        ("hunger", ["after an hour {P} @be very hungry", "the basket @@smell wonderful"] if "basket" in load or "pot" in load else ["the road @@be long", "{P.his} feet @+hurt"],
         ["{P} @eat some berries by the road", "{P} @think of {H.him} and @go on", "{P} @sing a song to forget about it"])])
    p.add(clauses[0])
    p.add(clauses[1], rng.choice(["and", "."]))
    p.some(p.feel("[afraid|worried|tired]"), ".", 0.5)
    p.speak("P", "[What shall I do now|What now|How can I go on]?", "ask") if rng.random() < 0.4 else None
    p.some("{P} @do not want to turn back", "but", 0.5)
    p.add(rng.choice(ways))
    p.ask("What was the trouble on the way?", f"The trouble was {trouble}.")
    p.para()
    p.add(f"[at last|in the end|long after noon] {{P}} @reach the {c}")
    p.some(p.sight(c), ".", 0.4)
    p.add("{H} @open the door" + rng.choice([" and @smile", " with wide eyes", " and @can not believe it"]), "and")
    p.speak("H", "[You came through all that|Come in, you are wet and cold|I was so worried|What a brave heart you have]!", "cry")
    p.add(rng.choice([f"{{H}} @give {{P.him}} a plate of {rng.choice(list(FOODS))}", "{H} @put a dry blanket round {P.him}", "{PH} @sit by the fire and @drink mint tea"]))
    p.ending()
    return p


def making(rng, **kw):
    p = Plot(rng, **kw)
    dish = rng.choice(list(FOODS))
    need = rng.choice([x for x in FOODS[dish][0] if x not in ("water", "time", "salt")])
    feast = rng.choice(["the harvest feast", "{P.his} grandmother's birthday", "the spring fair", "the wedding of a friend", "the last day of school", "a sick neighbour"])
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
        p.add(f"[there|after a long search] {{P}} @find {{X.him}} [behind a box|in a corner|under some old sacks]")
    else:
        p.add("{P} @do it [at once|with a smile|without a word of complaint]")
    p.add("{H} @keep {H.his} word", "and")
    p.para()
    steps = FOODS[dish][1]
    p.add("[back at home|in {P.his} kitchen] {P} @begin to cook")
    for step in steps[:rng.randint(1, len(steps))]:
        verb, rest = step.split(" ", 1)
        if rng.random() < 0.6 and verb.isalpha() and "until it" not in rest:
            p.add("[then|next|after that|] {P} @" + verb.replace("let", "let") + " " + rest.replace(" boil ", " boil ").split(" and ")[0])
    if rng.random() < 0.5:
        mishap = rng.choice(["the cat @@jump on the table", "the fire almost @@go out", "{P} @drop the big spoon", "the pot @@begin to boil over"])
        p.add("[suddenly|just then] " + mishap)
        p.add("{P} @be quick and @save [everything|the dish|the day]", "but")
    p.add(f"[when everything @@be ready|an hour later|in the evening], the whole house @@smell of {dish}")
    p.some("people @+come from every lane", ".", 0.5)
    p.speak("H", f"[This is the best {dish} in the world|I have never tasted anything so good|May I have some more]!", "cry")
    p.add(f"it @@be {FOODS[dish][2]}" if rng.random() < 0.3 and not FOODS[dish][2].startswith(("the children", "they", "it", "every")) else "{P} @be [very proud|red with joy|tired and proud]")
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
    spots += ["at the bottom of the well", "on the thin ice of the pond", "in a thorn bush", "on a small rock in the middle of the river"] if size < 6 else ["in a deep ditch"]
    spot = rng.choice(spots)
    p.opening()
    p.add(p.when() + f" {{P}} @hear a [strange|weak|sad] cry near the {place}")
    p.some(p.aside(), ".", 0.5)
    p.add(f"{{P}} @follow the sound and @find {{A.a}} that @@be stuck {spot}")
    p.ask("What did {P!} find?", f"{{P!}} found {{A.a}} that was stuck {spot}.")
    p.some("{A} @tremble with [fear|cold]", ".", 0.6)
    p.speak("P", "[Do not be afraid|Stay still|Wait, little one|I will help you], [I will get you out|it will soon be over|I am here].")
    p.para()
    tries = ["@pull with all {P.his} might", "@push from behind", "@throw a rope", "@call for help", "@try with a long stick", "@lie down and @stretch out a hand"]
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
    p.add(rng.choice(["{A} @lick {P.his} hand" if kind not in ("hen", "owl", "gull", "crab", "frog", "duck", "goose", "crow", "heron") else "{A} @look at {P.him} for a long time",
                      f"{{PH}} @give {{A.him}} [something to eat|a warm place by the stove]", "{A} @shake {A.self} and @look up"]))
    p.add(rng.choice(["[from then on|after that] {A} @follow {P.him} everywhere", f"in the evening {{A}} @go home to {ANIMALS[kind][2]}",
                      "the next morning {A} @leave a small gift at the door", "{A} never @forget {P.him}"]))
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
    p.add("{PH} @pull and @shout until " + rng.choice(["{X} @break in two", "{X} @fall into the mud", "{X} @roll into the water", "people @+stop and @+stare"]))
    p.add("{H} @walk away without [a word|looking back]", ".")
    p.add("{P} @go home angry", "and")
    p.para()
    p.add("[for three days|for a whole week|all the next day] {PH} @do not speak")
    p.some("{P} @" + "try to play alone" if p.P.child else "{P} @try to think of other things")
    p.add("nothing @@be [any fun|the same] without {H.him}", "but")
    p.some(p.feel("lonely"), ".", 0.5)
    p.add(rng.choice([f"then the {p.weather if p.weather not in ('heat', 'sunshine') else 'storm'} @@come and {{H}} @need help with the [roof|boat|sheep]", f"then {{P}} @hear that {{H}} @be ill", f"one evening {{PH}} @meet by chance {at(b)}"]))
    p.add("{P} @take a deep breath and @go to {H.him}", ".")
    p.speak("P", "[I am sorry|I was wrong|Forgive me], [you matter more than that old thing|I was selfish|I have missed you].")
    p.speak("H", "[I am sorry too|I was just as silly|Let us forget it|I have missed you too].")
    p.ask("How did the quarrel end?", "{P!} said sorry and they were friends again.")
    p.add(rng.choice(["{PH} @mend {X.him} with glue and string and @share {X.him}", "{PH} @give {X.him} to a child who @@have nothing", "from then on each of them @@have {X.him} for one week"]))
    p.ending()
    return p


def fear(rng, **kw):
    p = Plot(rng, **kw)
    what, scene, deed = rng.choice([
        ("the dark", "the lamp @@go out", "@count {P.his} steps and @walk through the dark"),
        ("the sea", "a child @@fall into the water", "@jump in and @pull the child to the shore"),
        ("thunder", "a storm @@come and the sheep @@+run away", "@go out into the thunder and @bring them home"),
        ("high places", "a kitten @@sit on the roof and @@cry", "@climb up without looking down"),
        ("dogs", "a dog with a thorn in its paw @@lie at the door", "@kneel down and @pull the thorn out"),
        ("strangers", "a wet stranger @@knock at the door", "@open the door and @offer a chair by the fire"),
        ("deep water", "the rope of the boat @@break and an old man @@drift away", "@take the little boat and @row after him"),
        ("the old cave", "a goat @@run into the cave", "@take a lantern and @follow it")])
    p.opening()
    p.add(f"{{P}} @be afraid of {what}")
    p.ask("What was {P!} afraid of?", f"{{P!}} was afraid of {what}.")
    p.some("[the others @+laugh about it|nobody @@know about it|{P} never @speak about it]")
    p.speak("H", "[Everyone is afraid of something|It is no shame to be afraid|Courage comes when you need it|Take one small step at a time].") if rng.random() < 0.6 else None
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
    p.speak("P", "[I was afraid, but I went on|I was so busy that I forgot my fear|Yes, I was, and I still am a little|A brave heart can beat fast too].")
    p.ending("proud")
    return p


def mystery(rng, **kw):
    p = Plot(rng, **kw)
    place = rng.choice(p.places)
    A = animal(rng, rng.choice([k for k in WILD if k not in (p.P.kind, "seal")]))
    p.t.slots["A"] = A
    odd, clue, why = rng.choice([
        (f"every night something @@steal the bread from the window", "small tracks in the mud", "{A} @have young ones to feed"),
        (f"every night a strange noise @@come from the {place}", "a [feather|tuft of hair] on a nail", "{A} @play with an old tin cup"),
        ("one by one the shiny spoons @+disappear", "a trail of crumbs", "{A} @love everything that @@shine"),
        ("someone @@ring the little bell at midnight", "a [thread|bite mark] on the rope", "{A} @pull at the rope to reach the nuts"),
        ("each morning a gift of [nuts|shells|berries] @@lie at the door", "small wet prints on the step", "{A} @want to say thank you for an old kindness"),
        ("the milk in the bowl @@be gone every morning", "white drops on the grass", "{A} @be hungry and @have no home")])
    p.opening()
    p.add(f"[then something strange @@begin|that {p.season} something odd @@happen]")
    p.add(odd)
    p.some("[nobody @@have an answer|people @+begin to whisper|some people @+speak of ghosts]")
    p.speak("H", "[It must be a ghost|It is only the wind|I think it is a thief|Someone should keep watch].") if rng.random() < 0.7 else None
    p.speak("P", "[I will find out|I do not believe in ghosts|Tonight I will stay awake|There must be a reason].")
    p.para()
    p.add(f"[that night|the next night|when it @@get dark] {{P}} @hide behind [the door|a barrel|the wall|an old cart] and @wait")
    p.some("the moon @@be [full|thin|hidden behind clouds]")
    p.add(f"{{P}} @find {clue}", ".") if rng.random() < 0.6 else None
    p.add("[at midnight|after a long time|just before dawn] something @@move", "and")
    p.add("it @@be {A.a}", ".")
    p.ask("Who was behind it?", "It was {A.a}.")
    p.add(why)
    p.some("{P} @laugh [quietly|with relief]", ".", 0.6)
    p.para()
    p.add("[the next day|in the morning] {P} @tell {H.him} everything")
    p.add(rng.choice(["{PH} @put out some food for {A.him} every evening", "{PH} @build {A.him} a little house of wood", "nobody @@be angry and {A} @get a name", "{PH} @keep the secret"]))
    p.ending()
    return p


def contest(rng, **kw):
    p = Plot(rng, **kw)
    game, win = rng.choice([("the boat race", "cross the line first"), ("the pie contest", "bake the best pie"), ("the swimming race", "reach the island first"),
                            ("the kite contest", "fly the highest kite"), ("the singing contest", "sing the best song"), ("the snow race", "reach the mill first"),
                            ("the pumpkin show", "grow the largest pumpkin"), ("the fishing day", "catch the biggest fish")])
    p.opening()
    p.add(f"[every {p.season}|once a year] the village @@hold {game}")
    p.add(f"{{P}} @want to {win}", "and")
    p.ask("What did {P!} want to win?", f"{{P!}} wanted to win {game}.")
    p.add(f"{{P}} @practise [every day|for weeks|in secret|before work]")
    p.add("{H.a} @@be [better|faster|the best of all|the winner of last year]", "but")
    p.para()
    p.add(f"[at last|then] the great day @@come and {rng.choice(WEATHER[p.weather][0])}")
    p.some("[everybody @@stand along the wall|people @+cheer and @+wave|the children @+sit on the wall]")
    p.add(f"[at first|from the start] {{P}} @be [ahead|behind|nervous]")
    p.add("[in the middle|halfway] {H} @have bad luck and @lose [an oar|{H.his} spoon|{H.his} balance|a shoe]".replace("an oar|{H.his} spoon|", "an oar|" if "boat" in game else ""))
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
    p.speak("P", f"[Do not worry|Stay in bed|Lie still], [I will cook for you|I will do your work today|I will fetch the doctor].")
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
        p.add(rng.choice(["{P} @laugh and @lie down for a nap on the way", "{P} @stop to look at {P.self} in the water", "a leaf @@fall and {P} @jump with fright"]))
        p.add("{H} @go on [slowly but surely|step by step] and @be there first", "and")
        p.add("{P} @be very quiet after that", "so")
        p.ask("Who won?", "{H!} won.")
    else:
        p.add(p.when() + " {P} @meet {H.a}")
        p.speak("P", f"[You have it so good|I wish I could live like you], let us change places for a day.")
        p.add(f"{{H}} @agree, so {{P}} @go to {ANIMALS[kind][2]}", ".")
        p.add(f"there @@be nothing to eat but {ANIMALS[kind][3]}")
        p.add("{P} @be [cold|hungry|unhappy] and {H} @feel no better", "so")
        p.add("in the evening each of them @@run home [as fast as possible|without a word]")
        p.ask("What did {P!} and {H!} do?", "They changed places for a day.")
    if rng.random() < 0.5:
        p.add({"trick": "[sweet words can cost a good meal|who listens to flattery pays for it]", "share": "[kindness comes back|who shares is never poor]",
               "boast": "[big words are soon forgotten|the loudest is not always the best]", "swap": "[home is best|every life has its own troubles]"}[sort])
    else:
        p.ending()
    return p


def skill(rng, **kw):
    p = Plot(rng, **kw)
    if not p.H.job:
        p.H = person(rng, other(p.P.pronoun) if p.P.pronoun in ("he", "she") else None, job=rng.choice([j for j in JOBS if j not in HE_JOBS | SHE_JOBS]), avoid=(p.P.name,))
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
    p.some("[the others @+laugh|{P} @hurt {P.his} thumb|{P} @want to cry]" if p.P.pronoun != "I" else "[the others @+laugh|I @hurt my thumb]")
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
        p.add("[the next morning|soon] everybody @@see what {H} @can do: {H} " + rng.choice(JOBS[p.H.job][1]) + " [better than anyone|with great skill]")
    p.add("[after a month|by spring|before long] {H} @have a small house and many friends", "and")
    p.speak("H", "[You were the first who spoke to me|A kind word opened the door|Now this is my home].")
    p.ending()
    return p


def fishing(rng, **kw):
    p = Plot(rng, **kw)
    p.opening()
    catch = rng.choice(["a fish as long as an arm", "an old boot", "{X.a}", "a bottle with a letter inside", "nothing at all"])
    p.add(p.when() + " {P} @row out " + rng.choice(["before sunrise", "with {H.a}", "to the island", "although the sky @@be dark"]))
    p.some(rng.choice(["the sea @@be as smooth as glass", "small waves @+lick the boat", "a seal @@look at the boat and @@dive", "far out a white sail @@shine"]), ".")
    p.add("{P} @throw out the line and @wait")
    p.some("an hour @@go by, then another", ".")
    p.add(rng.choice(["[suddenly|at last] something @@pull hard", "the line @@begin to shake", "{P} @be almost asleep when the line @@jump"]))
    p.add("{P} @pull and @pull", "and")
    p.add(f"[at the end of the line|on the hook] there @@be {catch}")
    p.ask("What did {P!} catch?", f"{{P!}} caught {catch}.")
    p.para()
    if "bottle" in catch:
        p.add("{P} @open it and @read: \"" + rng.choice(["Who finds this is my friend.", "Help! I am alone on an island.", "The treasure lies under the oak.", "Greetings from a ship in the north."]) + "\"")
        p.add(rng.choice(["{P} @write an answer and @throw the bottle back", "{P} @keep the letter for ever", "the whole village @@talk about it for weeks"]))
    elif "nothing" in catch:
        p.add("{P} @go home with an empty basket")
        p.speak("H", "[Even so you had a fine day|There is soup for two|The fish will come tomorrow|I caught too many, take half of mine].")
        p.add("that @@make up for everything", "and")
    else:
        p.speak("P", "[What a strange catch|Nobody will believe me|Look at this]!", "cry")
        p.add("{H} @laugh " + rng.choice(["until {H.he} @cry", "and @shake {H.his} head", "and @help to carry {P.his} things home" if p.P.pronoun != "I" else "and @help to carry my things home"]))
    p.ending()
    return p


def flood(rng, **kw):
    p = Plot(rng, **kw)
    danger, signs, work = rng.choice([
        ("the flood", ["it @@rain for five days", "the river @@climb over its banks"], ["@carry sacks of sand", "@bring the old people up the hill", "@open the gate of the mill"]),
        ("the fire", ["sparks @+fly from the chimney", "the roof of the barn @@begin to burn"], ["@fill buckets at the well", "@lead the cows out of the barn", "@tear down the burning planks"]),
        ("the great storm", ["the sky @@turn black", "the waves @@+throw the boats against the wall"], ["@tie up the boats", "@nail boards over the windows", "@pull the nets up the beach"]),
        ("the long snow", ["snow @@fall for a week", "no cart @can come through"], ["@dig a path from door to door", "@share out the bread", "@pull the sledge with the wood"])])
    p.opening()
    p.add(p.when() + " " + signs[0])
    p.add(signs[1], rng.choice(["and", "."]))
    p.ask("What was the danger?", f"The danger was {danger}.")
    p.add("{P} @be the first to see it and @ring the bell", ".")
    p.add(rng.choice(["people @+come running from every side", "doors @+open and lamps @+go on", "everyone @@know what that @@mean"]), "and")
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
    p.add(rng.choice(["one roof @@be gone and three carts @@+be broken", "the mud @@lie knee deep in the lanes", "the whole village @@be tired and dirty"]))
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
        p.add(rng.choice(["[then|soon|a little later] ", f"{at(rng.choice(p.places))} "]) + f"{{P}} @meet {who.name}, " + (who.role.replace("the ", "the ", 1) if who.job else who.role) + f", who @@need the {have}" + rng.choice(["", " for a journey", " for work", " more than bread"]))
        p.add(f"{who.name} @@give {{P.him}} {want} for it", rng.choice(["so", ".", "and"]))
        have = things[i]
    p.para()
    p.add(f"at last {{P}} @come to {{H.a}}, who @@have {{G}}")
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
    gift = rng.choice(["{X.a}", "a new coat", "a song", "a little boat", "a painted chair", "a basket of " + rng.choice(["apples", "berries", "eggs"]), "a " + rng.choice(["honey cake", "mushroom pie", "berry cake"])])
    p.opening()
    p.add(f"{{H.a}} @@have a birthday [the next day|in three days|on Sunday]")
    p.add(f"{{P}} @want to surprise {{H.him}} with {gift}", rng.choice(["and", "so"]))
    p.ask("What was the present?", f"The present was {gift}.")
    p.add(rng.choice(["{P} @work on it every night when the others @+sleep", "{P} @keep it under the bed", "{P} @ask half the village for help", "it @@be hard to keep the secret"]))
    p.some("{H} @see {P.his} lamp burning and @wonder" if p.P.pronoun != "I" else "{H} @see my lamp burning and @wonder", ".")
    p.speak("H", "[What are you doing there|Why are you so tired|Are you hiding something from me]?", "ask")
    p.speak("P", "[Oh, nothing|I can not tell you yet|I am only cleaning|Wait and see].")
    p.some("{H} @be [hurt|puzzled|a little angry]", ".")
    p.para()
    p.add("[on the morning of the birthday|when the day @@come] " + rng.choice(["{H} @think that everyone @@have forgotten it", "the house @@be dark and quiet", "{P} @knock at the door with a beating heart"]))
    p.add("then [all the neighbours|ten voices|{P} and the others] @+begin to sing", ".")
    p.add(f"{{P}} @give {{H.him}} {gift}")
    p.add("{H} @do not know what to say", rng.choice(["and", "."]))
    p.speak("H", "[So that was your secret|It is beautiful|I thought you had forgotten me|Never in my life was I so happy]!", "cry")
    p.ending()
    return p


def promise(rng, **kw):
    p = Plot(rng, **kw)
    duty, harm, repair = rng.choice([
        ("close the gate of the hen house", "a fox @@come in the night and @@take two hens", "@bring {H.him} two young hens"),
        ("water the beans", "the beans @+dry up in the heat", "@plant new ones and @water them every day"),
        ("feed the horse", "the horse @@break the fence to look for food", "@build a new fence"),
        ("tie up the boat", "the tide @@carry the boat away", "@search the whole coast until the boat @@be found"),
        ("watch the bread in the oven", "the bread @@turn black", "@bake until midnight"),
        ("bring in the washing", "the wind @@blow the shirts into the mud", "@wash everything again"),
        ("light the lamp at the bridge", "a cart @@fall into the river", "@help to pull the cart out")])
    p.opening()
    p.add(p.when() + " {H.a} @@must go away [for a day|until the next morning|to the town]")
    p.speak("H", f"[Please {duty}|Will you {duty} for me|You must {duty}], [you must not forget it|it is important|I count on you].")
    p.speak("P", "[You can trust me|I promise|Of course I will].")
    p.ask("What did {P!} promise to do?", f"{{P!}} promised to {duty}.")
    p.add(rng.choice(["there @@be music at the inn", "{P} @meet old friends", "{P} @find a good book", "the day @@be hot and {P} @fall asleep", "{P} @play with {X.a} until dark"]))
    p.add("{P} @forget [all about it|the promise]", rng.choice(["and", "so"]))
    p.para()
    p.add(harm)
    p.some("{P} @see it in the morning and @turn pale", ".", 0.7)
    p.add(rng.choice(["for a moment {P} @want to [lie|run away|blame the wind]", "{P} @think of a hundred excuses"]))
    p.add("{P} @tell the truth", "but")
    p.speak("P", "[I forgot my promise|It was my fault|I have no excuse], [I am so sorry|I will make it good].")
    p.speak("H", "[I am angry, but you were honest|It takes courage to say that|Everyone forgets something once|Then show me that you mean it].")
    p.add("{P} " + repair)
    p.add(rng.choice(["after that {P} never @break a promise again", "{H} @trust {P.him} more than before", "in the end {PH} @laugh about it"]))
    return p


PLOTS = [lost, errand, making, rescue, quarrel, fear, mystery, contest, illness, fable, skill, arrival, fishing, flood, bargain, surprise, promise]
ANIMAL_PLOTS = [fable, fable, fable, lost, quarrel, contest, rescue, surprise, mystery]


def story(rng, rich=0.6, **kw):
    """One story: a `Plot` already told, its paragraphs in `.paragraphs` and title in `.title`."""
    hero = kw.get("hero")
    if hero is None and rng.random() < 0.18:
        hero = kw["hero"] = animal(rng)
    plot = rng.choice(ANIMAL_PLOTS if hero is not None and hasattr(hero, "animal") else [f for f in PLOTS if f is not fable] if kw.get("first_person") or hero is not None else PLOTS)
    p = plot(rng, rich=rich, **kw)
    p.paragraphs = p.result()
    p.title = tidy(rng.choice([f"{p.P.name} and the {p.X.bare}" if plot in (lost, quarrel) else f"{p.P.name} and {p.H.name}", f"the {p.P.kind}'s {p.season}",
                               f"a {p.season} {p.time}", f"the {p.season} of {p.P.name}"]))
    past = Teller(rng, True, **p.t.slots)
    p.pairs = []
    for q, a in p.facts:
        past.last = {}
        p.pairs.append((tidy(past.expand(q)), tidy(past.expand(a))))
    return p
