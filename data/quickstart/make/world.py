"""What exists in the village of Wrenhaven: people, beasts, places, things, food, weather.

Pure data. Strings are templates of `grammar.py`: `[a|b]` is a choice, `@verb` is inflected.
This file knows nothing of plots, of sentences larger than a clause, or of the chat format.
"""

WOMEN = ("Ada Anna Bess Clara Dora Edith Ella Flora Greta Hanna Ida Ivy June Kate Lena Lily Mara Mina Molly Nell Nora "
         "Olga Polly Rosa Ruth Sara Tilda Una Vera Willa").split()
MEN = ("Adam Arlo Ben Bram Carl Dan Edwin Finn Fred George Hal Hugo Ivan Jack Jonas Karl Leo Luke Max Milo Ned Oscar "
       "Otto Paul Peter Rolf Sam Tom Victor Will").split()

TRAITS = ("shy brave kind clever quiet cheerful careful stubborn patient curious gentle honest proud lazy busy lonely "
          "generous clumsy thoughtful serious friendly forgetful hopeful wise merry").split()
LOOKS = ["with red hair", "with [grey|green|brown|blue] eyes", "with a long coat", "with a loud laugh", "with strong arms",
         "with a soft voice", "with a crooked nose", "with [muddy|old|heavy] boots", "with a warm smile",
         "with [rough|clever|quick] hands", "with a round face", "with a limp", "with white hair", "with a straw hat"]

# job: where, what is done there, what it needs, and why people care
JOBS = {
 "baker": ("bakery", ["@bake bread and rolls", "@mix flour, water and salt", "@get up before dawn", "@sell warm bread to the village"],
           ["an oven", "flour", "a long wooden spoon"], "people need bread every day"),
 "miller": ("mill", ["@grind corn into flour", "@carry heavy sacks", "@look after the big stones", "@watch the wheel turn in the river"],
           ["two round stones", "corn", "running water"], "without flour there is no bread"),
 "fisher": ("harbour", ["@catch fish in the bay", "@mend nets", "@row out before sunrise", "@clean the fish and @sell them at the market"],
           ["a boat", "a net", "good weather"], "fish is the best food of the village"),
 "farmer": ("farm", ["@plough the fields", "@milk the cows", "@feed the hens and the pigs", "@bring in the hay in summer"],
           ["a plough", "a strong horse", "rain at the right time"], "milk, eggs and corn come from the farm"),
 "blacksmith": ("forge", ["@make horseshoes and nails", "@hammer hot iron", "@mend broken tools", "@keep the fire burning all day"],
           ["a hammer", "a hot fire", "iron"], "every tool breaks one day"),
 "teacher": ("school", ["@teach the children to read and write", "@write on the board", "@tell the class about far countries", "@answer many questions"],
           ["chalk", "books", "patience"], "children want to learn"),
 "doctor": ("white house by the square", ["@visit sick people", "@give them medicine", "@bind up cuts and broken arms", "@listen to hearts and lungs"],
           ["a black bag", "clean cloth", "calm hands"], "anyone can fall ill"),
 "lighthouse keeper": ("lighthouse", ["@light the lamp every evening", "@clean the great glass", "@ring the bell in fog", "@write down the weather in a book"],
           ["oil", "a clean cloth", "a good clock"], "ships must not hit the rocks"),
 "shepherd": ("hill", ["@watch the sheep", "@count the lambs at night", "@lead the flock to fresh grass", "@cut the wool in spring"],
           ["a dog", "a long stick", "warm clothes"], "wool keeps people warm"),
 "gardener": ("garden", ["@plant seeds in spring", "@water the flowers", "@pull up weeds", "@grow beans, carrots and roses"],
           ["a spade", "a watering can", "good soil"], "a garden feeds the body and the eye"),
 "carpenter": ("workshop", ["@saw wood", "@build tables and doors", "@mend roofs", "@make chairs with strong legs"],
           ["a saw", "nails", "dry wood"], "every house needs a door and a table"),
 "boat builder": ("boatyard", ["@build boats", "@bend planks over steam", "@paint the hulls", "@close leaks with tar"],
           ["tar", "planks", "a good eye"], "a leaking boat is dangerous"),
 "tailor": ("shop with the blue door", ["@sew coats and shirts", "@mend torn trousers", "@measure people with a tape", "@cut cloth with big scissors"],
           ["a needle", "thread", "good light"], "clothes tear and children grow"),
 "innkeeper": ("inn", ["@serve soup and bread", "@make the beds for travellers", "@keep the fire warm", "@listen to old tales"],
           ["clean beds", "a full kitchen", "a friendly word"], "travellers are tired and hungry"),
 "postwoman": ("post office", ["@bring letters to every house", "@carry parcels up the hill", "@sort the mail in the morning", "@know every door in the village"],
           ["a big bag", "good shoes", "a good memory"], "people wait for news"),
 "ferryman": ("river", ["@take people across the river", "@pull the ferry along a rope", "@watch the water", "@carry carts and cows to the other side"],
           ["a flat boat", "a strong rope", "strong arms"], "the bridge is a long way off"),
 "beekeeper": ("orchard", ["@look after the bees", "@collect honey", "@build wooden hives", "@move slowly among the bees"],
           ["a hat with a veil", "smoke", "a calm heart"], "honey is sweet and bees help the apple trees"),
 "potter": ("pottery", ["@shape cups and bowls from clay", "@turn the wheel", "@burn the pots in a hot kiln", "@paint plates with fish and flowers"],
           ["clay", "a wheel", "steady hands"], "soup needs a bowl"),
 "weaver": ("weaving room", ["@weave cloth on a loom", "@dye wool red and blue", "@make blankets and scarves", "@sing at the loom"],
           ["wool", "a loom", "quick fingers"], "winter is cold in Wrenhaven"),
 "librarian": ("library", ["@lend books to the village", "@put every book in its place", "@read to the children", "@mend torn pages"],
           ["shelves", "glue", "a quiet room"], "books bring the wide world home"),
 "clockmaker": ("clock shop", ["@repair clocks and watches", "@work with tiny wheels", "@wind the clock in the tower", "@listen to the ticking"],
           ["a magnifying glass", "small screws", "steady hands"], "nobody wants to be late"),
 "sailor": ("ship", ["@sail across the sea", "@pull the ropes", "@climb the mast", "@scrub the deck"],
           ["a strong stomach", "warm clothes", "a good knot"], "goods come over the sea"),
 "cook": ("kitchen of the inn", ["@cook stews and soups", "@chop onions", "@taste everything twice", "@bake pies on Sundays"],
           ["a sharp knife", "a big pot", "salt"], "a good meal makes people glad"),
 "woodcutter": ("wood", ["@cut down old trees", "@split logs", "@stack wood for the winter", "@plant young trees"],
           ["an axe", "a cart", "strong shoulders"], "every stove needs wood"),
}
HE_JOBS, SHE_JOBS = {"ferryman"}, {"postwoman"}

# place: preposition, where it lies, what it looks like, what is there, what people do, sound or smell
PLACES = {
 "lighthouse": ("at", "on the cliff above the bay", ["tall and white", "round and strong", "old but bright"], ["a lamp at the top", "a winding stair with ninety steps", "a small room with a bed and a stove"], ["look out over the sea", "watch the ships go by"], "the wind @@sing around the tower"),
 "harbour": ("at", "at the foot of the village", ["busy", "small but safe", "full of colour"], ["fishing boats", "nets that dry in the sun", "a long stone wall"], ["unload fish", "wait for the boats"], "it @@smell of salt and fish"),
 "bakery": ("in", "next to the village square", ["warm", "small and bright", "full of good smells"], ["a great oven", "shelves of bread", "a bell above the door"], ["buy rolls", "talk about the news"], "it @@smell of fresh bread"),
 "mill": ("at", "by the river", ["old and dusty", "high and narrow", "white with flour"], ["a wooden wheel", "sacks of corn", "two heavy stones"], ["bring their corn", "collect their flour"], "the wheel @@creak all day"),
 "market": ("at", "in the middle of the village", ["loud and cheerful", "crowded", "colourful"], ["stalls with apples and cheese", "baskets of eggs", "a man who sells honey"], ["buy fruit", "meet their friends"], "voices @+call from every side"),
 "school": ("at", "behind the chapel", ["small and red", "bright and clean", "noisy in the morning"], ["twenty desks", "a black board", "a map of the world"], ["learn to read", "play in the yard"], "a bell @@ring at eight"),
 "inn": ("at", "on the road to the town", ["low and cosy", "old and friendly", "warm in winter"], ["a big fire", "long tables", "soft beds under the roof"], ["eat stew", "tell tales"], "someone always @@laugh inside"),
 "forge": ("at", "at the end of the lane", ["dark and hot", "black with smoke", "small but lively"], ["a red fire", "hammers on the wall", "a heap of old iron"], ["bring broken tools", "warm their hands"], "the hammer @@ring like a bell"),
 "wood": ("in", "behind the hill", ["deep and green", "dark and quiet", "cool even in summer"], ["tall oaks", "soft moss", "a path that nobody uses"], ["pick berries", "gather sticks"], "leaves @+rustle everywhere"),
 "hill": ("on", "behind the village", ["green and windy", "steep", "covered with grass"], ["a lonely tree", "a stone bench", "a flock of sheep"], ["fly kites", "look at the stars"], "the grass @@whisper in the wind"),
 "beach": ("on", "below the cliff", ["long and white", "wide and empty", "soft and sandy"], ["shells", "smooth stones", "pools with tiny crabs"], ["walk along the water", "build castles of sand"], "waves @+roll in one after another"),
 "bridge": ("on", "between the mill and the meadow", ["narrow", "old and made of stone", "wet and mossy"], ["two lamps", "a low wall", "a view of the river"], ["cross the river", "throw sticks into the water"], "water @@rush below"),
 "river": ("at", "on the east side of the village", ["quick and clear", "cold", "wide after rain"], ["flat stones", "willow trees", "silver fish"], ["wash their clothes", "catch trout"], "the water @@murmur over the stones"),
 "meadow": ("in", "beyond the bridge", ["bright with flowers", "soft and green", "wide and sunny"], ["yellow flowers", "butterflies", "an old fence"], ["pick flowers", "lie in the grass"], "bees @+hum among the flowers"),
 "garden": ("in", "behind the white house", ["neat and green", "full of flowers", "small but rich"], ["beds of carrots", "a rose bush", "a wooden bench"], ["pull up weeds", "sit in the shade"], "it @@smell of earth and roses"),
 "orchard": ("in", "on the south side of the hill", ["sweet and shady", "old", "full of fruit in autumn"], ["apple trees", "a long ladder", "six beehives"], ["pick apples", "listen to the bees"], "ripe apples @+fall into the grass"),
 "pond": ("at", "near the farm", ["still and green", "small and round", "frozen in winter"], ["ducks", "tall reeds", "a broken boat"], ["feed the ducks", "skate in winter"], "frogs @+croak in the evening"),
 "island": ("on", "half a mile from the shore", ["small and rocky", "wild and lonely", "green in the middle"], ["a ruined tower", "a hundred gulls", "a cave"], ["look for eggs", "hide old treasure"], "gulls @+scream all day"),
 "boatyard": ("in", "beside the harbour", ["muddy and busy", "full of wood", "noisy"], ["half a boat", "piles of planks", "a pot of black tar"], ["build boats", "paint old hulls"], "it @@smell of tar and fresh wood"),
 "farm": ("at", "past the orchard", ["large and muddy", "old and friendly", "full of animals"], ["a red barn", "a hen house", "a field of corn"], ["milk the cows", "gather eggs"], "a cock @@crow at dawn"),
 "library": ("in", "above the post office", ["quiet and dusty", "warm and still", "small but full"], ["five hundred books", "a deep chair", "a sleepy cat"], ["read", "borrow books"], "pages @+rustle softly"),
 "well": ("at", "in the square", ["deep and cold", "very old", "round and made of stone"], ["a bucket on a rope", "ferns between the stones", "clear water far below"], ["draw water", "share the news"], "drops @+fall in the dark"),
 "cave": ("in", "under the cliff", ["dark and damp", "deep and cold", "full of echoes"], ["a still pool", "bats on the roof", "strange marks on the wall"], ["hide from the rain", "search for treasure"], "every step @@make an echo"),
 "chapel": ("in", "beside the school", ["quiet", "small and white", "cool and plain"], ["a great bell", "coloured windows", "wooden benches"], ["sing on Sundays", "sit in peace"], "the bell @@ring over the roofs"),
}
LAND = [p for p in PLACES if p not in ("island",)]

# animal: pronoun choices, looks, home, food, habits, sound, size, a trait
ANIMALS = {
 "fox": ("he she", "red with a white tip on its tail", "a den in the wood", "mice and berries", ["@hunt at night", "@move without a sound"], "bark", 5, "sly"),
 "hen": ("she", "brown and round", "the hen house", "corn and worms", ["@lay eggs", "@scratch in the dust"], "cluck", 4, "busy"),
 "cat": ("he she", "soft with green eyes", "a warm kitchen", "fish and mice", ["@sleep in the sun", "@wash its paws"], "purr", 4, "proud"),
 "dog": ("he she", "big with a wet nose", "a basket by the door", "bones and meat", ["@guard the house", "@wag its tail"], "bark", 6, "loyal"),
 "mouse": ("he she", "tiny and grey", "a hole in the wall", "crumbs and cheese", ["@hide from cats", "@run along the wall"], "squeak", 1, "timid"),
 "owl": ("he she", "brown with round eyes", "a hollow oak", "mice", ["@sleep all day", "@fly without a sound"], "hoot", 4, "wise"),
 "gull": ("he she", "white with grey wings", "the cliff", "fish and old bread", ["@steal fish from the boats", "@ride on the wind"], "scream", 4, "greedy"),
 "crab": ("he she", "red with two claws", "a pool among the rocks", "small shells", ["@walk sideways", "@hide under stones"], None, 2, "grumpy"),
 "seal": ("he she", "grey and smooth", "the rocks by the island", "fish", ["@dive under the waves", "@rest on the rocks"], "bark", 8, "playful"),
 "goat": ("he she", "white with short horns", "the hill", "grass, leaves and even hats", ["@climb on walls", "@chew everything"], "bleat", 7, "stubborn"),
 "donkey": ("he she", "grey with long ears", "the stable", "hay and carrots", ["@carry heavy bags", "@stand still when it @@want to"], "bray", 9, "patient"),
 "horse": ("he she", "tall and brown", "the stable", "hay and oats", ["@pull the cart", "@gallop over the meadow"], "neigh", 10, "strong"),
 "cow": ("she", "black and white", "the barn", "grass", ["@give milk", "@chew all day"], "moo", 10, "calm"),
 "sheep": ("she", "white and woolly", "the hill", "grass", ["@follow the flock", "@give wool"], "bleat", 7, "shy"),
 "pig": ("he she", "pink and fat", "the sty", "apples and scraps", ["@roll in the mud", "@sniff at everything"], "grunt", 8, "hungry"),
 "duck": ("he she", "green and brown", "the pond", "weeds and snails", ["@swim in a row with the others", "@dive for food"], "quack", 4, "cheerful"),
 "goose": ("she", "white with a long neck", "the farm", "grass and corn", ["@chase strangers", "@fly south in autumn"], "honk", 5, "bossy"),
 "rabbit": ("he she", "brown with a white tail", "a burrow under the hedge", "clover and carrots", ["@hop over the meadow", "@dig long tunnels"], None, 3, "quick"),
 "hedgehog": ("he she", "small and full of spines", "a heap of leaves", "worms and snails", ["@roll into a ball", "@sleep all winter"], "sniff", 2, "slow"),
 "frog": ("he she", "green and wet", "the pond", "flies", ["@jump from leaf to leaf", "@sing in the evening"], "croak", 1, "noisy"),
 "crow": ("he she", "black and shiny", "a nest in the tall tree", "seeds and scraps", ["@collect shiny things", "@remember every face"], "caw", 3, "clever"),
 "badger": ("he she", "grey with a striped face", "a deep hole in the wood", "roots and worms", ["@dig with strong claws", "@come out at night"], "grunt", 6, "grumpy"),
 "squirrel": ("he she", "red with a thick tail", "a nest in the oak", "nuts", ["@hide nuts for the winter", "@jump from tree to tree"], "chatter", 2, "nervous"),
 "otter": ("he she", "brown and sleek", "the bank of the river", "trout and crabs", ["@slide down the bank", "@swim on its back"], "whistle", 5, "playful"),
 "heron": ("he she", "grey with long legs", "the reeds", "fish and frogs", ["@stand on one leg", "@wait for hours"], "croak", 6, "patient"),
}
WILD = "fox owl gull crab seal rabbit hedgehog frog crow badger squirrel otter heron mouse".split()

# thing: adjectives, material, use; light things can be blown away or carried by a bird
THINGS = {
 "kite": ("red|yellow|paper|big", "paper and thin sticks", "fly in the wind", True),
 "lantern": ("brass|old|bright|small", "brass and glass", "see in the dark", False),
 "key": ("silver|rusty|little|heavy", "iron", "open a locked door", True),
 "ring": ("gold|silver|thin|precious", "gold", "show love or keep a promise", True),
 "hat": ("straw|green|new|funny", "straw", "keep off the sun", True),
 "scarf": ("blue|woollen|long|striped", "wool", "keep the neck warm", True),
 "basket": ("round|wicker|large|old", "willow", "carry apples and eggs", False),
 "bell": ("brass|tiny|cracked|bright", "brass", "call people", True),
 "toy boat": ("little|wooden|white|fast", "wood", "sail on the pond", True),
 "book": ("thick|old|blue|precious", "paper and leather", "read", False),
 "drum": ("round|loud|small|painted", "wood and skin", "make music", False),
 "flute": ("wooden|silver|slim|old", "wood", "play soft tunes", True),
 "coin": ("gold|shiny|old|strange", "gold", "buy things", True),
 "map": ("torn|old|secret|yellow", "paper", "find the way", True),
 "letter": ("long|sealed|important|short", "paper", "send news", True),
 "blanket": ("warm|woollen|red|soft", "wool", "keep warm at night", False),
 "rope": ("long|strong|thick|new", "hemp", "tie up a boat", False),
 "net": ("torn|wide|new|heavy", "string", "catch fish", False),
 "bucket": ("wooden|tin|leaky|blue", "wood", "carry water", False),
 "ladder": ("long|tall|shaky|wooden", "wood", "reach high places", False),
 "umbrella": ("black|huge|broken|yellow", "cloth and wire", "keep off the rain", True),
 "spoon": ("wooden|silver|big|favourite", "wood", "stir soup", True),
 "clock": ("tall|old|loud|golden", "wood and brass", "tell the time", False),
 "doll": ("little|rag|pretty|old", "cloth", "play house", True),
 "ball": ("red|leather|round|new", "leather", "play games", True),
 "cup": ("blue|chipped|white|favourite", "clay", "drink tea", False),
 "mirror": ("round|small|old|clear", "glass", "look at one's face", True),
 "compass": ("brass|old|small|fine", "brass and glass", "find north", True),
 "hammer": ("heavy|good|small|iron", "iron and wood", "drive nails", False),
 "candle": ("white|thick|long|wax", "wax", "give light", False),
}

# food: ingredients, steps (plain orders), a comment
FOODS = {
 "bread": (["flour", "water", "salt", "yeast"], ["mix the flour, the salt and the yeast", "add warm water", "knead the dough", "let it rise for an hour", "bake it until it is brown"], "best while it is warm"),
 "vegetable soup": (["carrots", "onions", "beans", "water", "salt"], ["chop the vegetables", "fry the onions in a big pot", "add the water and the rest", "cook it slowly for half an hour", "season it with salt"], "good on a cold day"),
 "fish stew": (["fish", "potatoes", "milk", "onions"], ["clean the fish", "cut the potatoes into small pieces", "boil them with the onions", "add the fish and the milk", "cook it gently and never let it boil over"], "the pride of the inn"),
 "apple pie": (["apples", "flour", "butter", "sugar"], ["rub the butter into the flour", "roll out the dough", "peel and slice the apples", "fill the dish and add the sugar", "bake it until the crust is golden"], "everyone asks for more"),
 "honey cake": (["honey", "eggs", "flour", "butter"], ["beat the eggs", "stir in the honey and the butter", "add the flour spoon by spoon", "pour it into a tin", "bake it for forty minutes"], "sweet and soft"),
 "berry jam": (["berries", "sugar", "lemon"], ["wash the berries", "put them in a pot with the sugar", "boil them and stir all the time", "add a little lemon", "fill the hot jam into jars"], "lovely on bread"),
 "porridge": (["oats", "milk", "honey"], ["warm the milk", "add the oats", "stir until it is thick", "put a spoon of honey on top"], "a good start to the day"),
 "pancakes": (["eggs", "milk", "flour", "butter"], ["beat the eggs and the milk", "add the flour", "melt the butter in a pan", "pour in a thin layer", "turn it when the edge is brown"], "the children love them"),
 "cheese": (["milk", "salt", "time"], ["warm the milk", "wait until it turns thick", "press out the water", "add the salt", "let it rest in a cool cellar"], "better with age"),
 "mushroom pie": (["mushrooms", "cream", "flour", "butter"], ["clean the mushrooms", "fry them in butter", "stir in the cream", "cover them with dough", "bake it until it smells good"], "a dish for autumn"),
 "mint tea": (["mint", "water", "honey"], ["boil the water", "pour it over the mint", "wait five minutes", "add some honey"], "it calms the stomach"),
 "biscuits": (["flour", "butter", "sugar", "an egg"], ["mix the butter and the sugar", "add the egg and the flour", "cut out little stars", "bake them for ten minutes"], "they never last long"),
}

# weather: scene clauses, what it makes hard, what it is, seasons
WEATHER = {
 "fog": (["[thick|grey|white] fog @@lie over the [harbour|village|bay]", "the fog @@be so thick that nobody @can see the [chapel|harbour wall|next house]", "everything @@be grey and [still|silent]"], "find the way", "Fog is a cloud that lies on the ground", "autumn winter spring"),
 "rain": (["it @@rain [without a break|hard|since early morning]", "rain @@drum on the roofs", "water @@run down the [lanes|windows|steps]"], "stay dry", "Rain is water that falls from the clouds", "spring summer autumn"),
 "storm": (["a storm @@come in from the sea", "thunder @@roll over the bay and lightning @@flash", "the waves @@+be as high as houses"], "go out to sea", "A storm is strong wind with heavy rain and often with thunder", "autumn winter summer"),
 "snow": (["snow @@fall [softly|thickly|all night]", "the roofs @@+be white", "every path @@be deep in snow"], "walk far", "Snow is frozen water that falls in soft white flakes", "winter"),
 "wind": (["a [strong|cold|wild] wind @@blow from the [sea|north|west]", "the wind @@pull at hats and coats", "shutters @@+bang all over the village"], "hold on to things", "Wind is air that moves", "autumn spring winter summer"),
 "frost": (["frost @@cover the [grass|windows|fields]", "the air @@be cold and clear", "ice @@shine on the [puddles|pond]"], "keep warm", "Frost is a thin layer of ice that forms on cold nights", "winter autumn"),
 "sunshine": (["the sun @@shine [on the water|over the roofs|all day]", "the sky @@be blue and [clear|wide]", "the air @@be [mild|warm] and full of [birds|light]"], "stay indoors", "Sunshine is the light and warmth of the sun", "spring summer autumn"),
 "heat": (["it @@be too hot to [work|run|think]", "the stones of the square @@+burn under bare feet", "not a leaf @@move in the heat"], "work at noon", "Heat is what we feel when the sun burns all day", "summer"),
}
SEASONS = {
 "spring": (["the first flowers @@+open", "lambs @@+jump in the meadow", "the birds @@+build their nests"], ["plant seeds", "paint the boats"], "everything begins to grow"),
 "summer": (["the days @@+be long", "the corn @@stand high", "children @@+swim in the bay"], ["bring in the hay", "swim in the bay"], "the days are long and warm"),
 "autumn": (["the leaves @@+turn red and brown", "the apples @@+be ripe", "the swallows @@+fly south"], ["pick apples", "gather nuts"], "the leaves fall and the fruit is ripe"),
 "winter": (["the days @@+be short", "smoke @@rise from every chimney", "the pond @@be frozen"], ["sit by the fire", "skate on the pond"], "it is cold and the nights are long"),
}
TIMES = ["morning", "afternoon", "evening", "day", "night"]

FEELINGS = {  # feeling: (sign, reason when asked, advice)
 "sad": ("@wipe away a tear", "lost something dear", "talk to a friend and take a walk"),
 "happy": ("@laugh out loud", "had good news", "share your joy with someone"),
 "angry": ("@stamp with one foot", "was treated unfairly", "breathe slowly and count to ten"),
 "afraid": ("@tremble", "heard a strange noise", "hold someone's hand and look closely"),
 "tired": ("@yawn", "worked all day", "rest and go to bed early"),
 "lonely": ("@sit alone", "had no one to talk to", "visit a neighbour"),
 "proud": ("@stand very straight", "finished hard work", "enjoy it and thank those who helped"),
 "bored": ("@kick a stone along the lane", "had nothing to do", "read a book or make something"),
 "worried": ("@walk up and down", "waited too long for news", "do one small thing that helps"),
 "hungry": ("@look at the pot", "had missed lunch", "eat some bread and soup"),
 "cold": ("@rub both hands", "had no coat", "sit by the fire and drink something hot"),
 "ill": ("@cough", "got wet in the rain", "stay in bed and call the doctor"),
}
OPPOSITES = dict(big="small", hot="cold", day="night", old="young", loud="quiet", fast="slow", happy="sad", full="empty",
                 wet="dry", high="low", light="dark", strong="weak", early="late", brave="timid", near="far", open="closed",
                 heavy="light", clean="dirty", long="short", hard="soft", sweet="sour", rich="poor", deep="shallow", lazy="busy")

HOME_AT = {"the cliff": "on", "the hill": "on", "the rocks by the island": "on", "the bank of the river": "on", "the farm": "on", "the pond": "by"}


def at_home(kind):
    """Where an animal lives, with its preposition."""
    home = ANIMALS[kind][2]
    return f"{HOME_AT.get(home, 'in')} {home}"
