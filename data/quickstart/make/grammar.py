"""The realiser: turns templates and entities into English text.

A template is plain text with three marks:
  `[a|b|c]`  one of the alternatives (they nest, and may be empty);
  `{slot}`   an entity or another template; `{P}` subject, `{P.him}`, `{P.his}`, `{P.self}`, `{P!}` never a pronoun,
             `{P.a}` first mention ("a red kite"), `{P.bare}` noun without article;
  `@verb`    inflected for the last subject slot; `@@verb` third person singular; `@@+verb` and `@+verb` plural.
It keeps the discourse: who was mentioned last decides between a name and a pronoun.
It knows nothing of the village.
"""

import random
import re

PRONOUNS = {
    "he": ("he", "him", "his", "himself"),
    "she": ("she", "her", "her", "herself"),
    "it": ("it", "it", "its", "itself"),
    "they": ("they", "them", "their", "themselves"),
    "I": ("I", "me", "my", "myself"),
    "we": ("we", "us", "our", "ourselves"),
}

PAST = dict(
    x.split(":")
    for x in (
        "be:was have:had do:did go:went come:came see:saw say:said get:got give:gave take:took make:made know:knew think:thought "
        "find:found tell:told feel:felt leave:left keep:kept hold:held bring:brought begin:began run:ran sit:sat stand:stood "
        "lose:lost hear:heard let:let mean:meant set:set meet:met pay:paid read:read speak:spoke lie:lay lead:led grow:grew "
        "fall:fell send:sent build:built spend:spent cut:cut rise:rose drive:drove buy:bought wear:wore choose:chose eat:ate "
        "drink:drank sleep:slept wake:woke sing:sang swim:swam fly:flew blow:blew throw:threw catch:caught teach:taught "
        "hide:hid ride:rode shake:shook break:broke steal:stole tear:tore bend:bent bind:bound dig:dug hang:hung put:put shut:shut "
        "sell:sold shine:shone sweep:swept weep:wept win:won light:lit ring:rang sink:sank stick:stuck feed:fed write:wrote "
        "draw:drew forget:forgot forgive:forgave understand:understood become:became creep:crept freeze:froze grind:ground "
        "burn:burned smell:smelled learn:learned weave:wove sew:sewed saw:sawed spread:spread hurt:hurt bleed:bled hit:hit lend:lent "
        "can:could will:would must:had_to spring:sprang slide:slid bite:bit beat:beat lay:laid show:showed"
    ).split()
)
PRESENT = {"be": "is", "have": "has", "do": "does", "go": "goes", "can": "can", "will": "will", "must": "must"}
DOUBLE = set(
    "stop beg hug nod drop slip grab plan chat pat tug step hop wag trip hum rub skip trot clap wrap shrug pop dip "
    "knit chop stir scrub drum fit sob".split()
)


def inflect(verb, past, number):
    """`number`: 1 for "I", 3 for third person singular, 0 for plural."""
    if past:
        if verb == "be":
            return "were" if number == 0 else "was"
        if verb in PAST:
            return PAST[verb].replace("_", " ")
        if verb in DOUBLE:
            return verb + verb[-1] + "ed"
        if verb.endswith("e"):
            return verb + "d"
        return verb[:-1] + "ied" if re.search(r"[^aeiou]y$", verb) else verb + "ed"
    if number != 3:
        return {1: "am", 0: "are"}[number] if verb == "be" else verb
    if verb in PRESENT:
        return PRESENT[verb]
    if re.search(r"(s|x|z|ch|sh)$", verb):
        return verb + "es"
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"


class Entity:
    """Someone or something a text speaks of: a name, a pronoun, other nouns for it, and a first mention."""

    def __init__(self, name, pronoun, nouns=(), first=None, bare=None, **facts):
        self.name, self.pronoun, self.nouns = name, pronoun, list(nouns)
        self.first, self.bare = first or name, bare or name
        self.__dict__.update(facts)

    @property
    def number(self):
        return {"I": 1, "they": 0, "we": 0}.get(self.pronoun, 3)


class Teller:
    """Expands templates from left to right with one random stream and one discourse."""

    def __init__(self, rng: random.Random, past=True, **slots):
        self.rng, self.past, self.slots = rng, past, dict(slots)
        self.last, self.number, self.fresh = {}, 3, True

    def copy(self, past):
        return Teller(self.rng, past, **self.slots)

    def expand(self, text):
        out, i = [], 0
        while i < len(text):
            c = text[i]
            if c == "[":
                depth, j, cuts = 1, i + 1, [i]
                while depth:
                    if text[j] == "[":
                        depth += 1
                    elif text[j] == "]":
                        depth -= 1
                    elif text[j] == "|" and depth == 1:
                        cuts.append(j)
                    j += 1
                cuts.append(j - 1)
                k = self.rng.randrange(len(cuts) - 1)
                out.append(self.expand(text[cuts[k] + 1 : cuts[k + 1]]))
                i = j
            elif c == "{":
                j = text.index("}", i)
                out.append(self.slot(text[i + 1 : j]))
                i = j + 1
            elif c == "@":
                m = re.match(r"@(@?)(\+?)([a-z]+)", text[i:])
                number = 0 if m[2] else 3 if m[1] else self.number
                out.append(inflect(m[3], self.past, number))
                i += m.end()
            else:
                out.append(c)
                i += 1
        return "".join(out)

    def slot(self, key):
        key, _, form = key.partition(".")
        named = key.endswith("!")
        value = self.slots[key.rstrip("!")]
        if not isinstance(value, Entity):
            return self.expand(value() if callable(value) else value)
        forms = PRONOUNS[value.pronoun]
        own = value.pronoun in ("I", "we")
        known = self.last.get(value.pronoun) is value
        self.last[value.pronoun] = value
        if form in ("", "him"):
            if form == "":
                self.number = value.number
            chance = 0 if named or self.fresh else 0.9 if form or value.number == 0 else 0.75
            if form == "":
                self.fresh = False
            if own or (known and self.rng.random() < chance):
                return forms[0 if form == "" else 1]
            return self.expand(value.name) if named else self.noun(value)
        if form == "his":
            if own or (known and self.rng.random() < 0.95):
                return forms[2]
            noun = self.noun(value)
            return noun + ("'" if noun.endswith("s") and value.number == 0 else "'s")
        if form == "self":
            return forms[3]
        if form == "he":
            self.number = value.number
            return forms[0]
        if form == "a":
            return self.expand(value.first)
        if form == "bare":
            return self.expand(value.bare)
        raise KeyError(form)

    def noun(self, value):
        if value.nouns and self.rng.random() < 0.3:
            return self.expand(self.rng.choice(value.nouns))
        return self.expand(value.name)


def tidy(text):
    """Articles before vowels, spaces, and capitals at the start of sentences."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.?!;:])", r"\1", text)
    text = re.sub(r",([.?!,])", r"\1", text)
    text = re.sub(r"([.?!])[.,]", r"\1", text)
    text = re.sub(r"\b([Aa]) (?=[aeioAEIO]|u(?!s|n[ai]))(?!one)", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=one\b)", r"\1 ", text)
    return re.sub(r'^(["]?)([a-z])', lambda m: m[1] + m[2].upper(), text)


class Story:
    """Events in order with their relation to the one before; `text` fuses them into sentences and paragraphs."""

    def __init__(self, teller):
        self.t, self.events = teller, []

    def add(self, clause, rel="."):
        """`rel`: how this clause follows from the last one: "." then, "so", "but", "and"; `None` when empty."""
        if clause:
            self.events.append((rel, clause))
        return self

    def maybe(self, chance, clause, rel="."):
        return self.add(clause, rel) if self.t.rng.random() < chance else self

    def para(self):
        self.events.append(("para", ""))
        return self

    def speak(self, who, text, kind="say"):
        """Direct speech. `text` ends in its own mark; `who` is a slot name."""
        rng, first = self.t.rng, self.t.slots[who].pronoun == "I"
        reply = bool(self.events) and '"' in self.events[-1][1]
        verbs = {
            "say": "[@@say|@@say|@@reply|@@answer]" if reply else "@@say",
            "ask": "@@ask",
            "cry": "[@@cry|@@call|@@shout]",
            "whisper": "[@@whisper|@@murmur]",
        }[kind]
        how = rng.choice(["", "", "", "", "", " [softly|kindly|quietly|slowly|gently|at once]", " with a [smile|sigh|nod|laugh]"])
        if kind != "say":
            how = ""
        plain = verbs.replace("@@", "@")
        tag = f"{{{who}}} {plain}{how}" if first or rng.random() < 0.5 else f"{verbs} {{{who}!}}{how}"
        head, mark = text[:-1], text[-1]
        inner = head + ("," if mark == "." else mark)
        style = rng.random()
        if style < 0.62:
            line = f'"{inner}" {tag}'
        elif style < 0.8 and ". " in head:
            a, b = text.split(". ", 1)
            line = f'"{a}," {tag}. "{b}"'
        else:
            line = f'{{{who}}} {plain}, "{text}"'
        return self.add(line)

    def text(self):
        t, rng, out, sentences, i = self.t, self.t.rng, [], [], 0
        events = self.events

        def stop(s):
            sentences.append(tidy(s if re.search(r'[.?!]"?$', s) else s + "."))

        while i < len(events):
            rel, clause = events[i]
            if rel == "para":
                if sentences:
                    out.append(" ".join(sentences))
                    sentences, t.fresh = [], rng.random() < 0.6
                i += 1
                continue
            nxt = events[i + 1] if i + 1 < len(events) else (".", "")
            quoted = '"' in clause or '"' in nxt[1]
            p = rng.random()
            if nxt[0] == "so" and not quoted:
                if p < 0.35:
                    stop(t.expand(clause) + ", so " + t.expand(nxt[1]))
                elif p < 0.6:
                    stop("because " + t.expand(clause) + ", " + t.expand(nxt[1]))
                elif p < 0.8:
                    stop(t.expand(clause))
                    stop("so " + t.expand(nxt[1]))
                else:
                    stop(t.expand(clause))
                    stop(t.expand("that @@be why ") + t.expand(nxt[1]))
                i += 2
            elif nxt[0] == "but" and not quoted:
                if p < 0.45:
                    stop(t.expand(clause) + ", but " + t.expand(nxt[1]))
                elif p < 0.65:
                    stop("although " + t.expand(clause) + ", " + t.expand(nxt[1]))
                else:
                    stop(t.expand(clause))
                    stop(("but " if p < 0.85 else "still, ") + t.expand(nxt[1]))
                i += 2
            elif nxt[0] == "and" and not quoted:
                if p < 0.5:
                    stop(t.expand(clause) + ", and " + t.expand(nxt[1]))
                elif p < 0.7 and clause[0] == "{" == nxt[1][0]:
                    stop(rng.choice(["when ", "as soon as "]) + t.expand(clause) + ", " + t.expand(nxt[1]))
                else:
                    stop(t.expand(clause))
                    stop(t.expand(rng.choice(["", "", "then ", "soon ", "at once "])) + t.expand(nxt[1]))
                i += 2
            else:
                stop(t.expand(clause))
                i += 1
        if sentences:
            out.append(" ".join(sentences))
        return out
