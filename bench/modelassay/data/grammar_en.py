"""The English grammar: agreement in number and tense, a/an, selection of objects by verbs, relative and that-clauses.

Features: ``n``, ``m`` number; ``t`` tense; ``f`` verb form; ``i`` initial sound (c consonant, v vowel);
``k`` kind of noun, ``o`` of thing.
"""

from __future__ import annotations

from modelassay.data.grammar import Grammar, compile_grammar

FEATURES = {
    "n": ("sg", "pl"),
    "m": ("sg", "pl"),
    "t": ("pres", "past"),
    "f": ("pres.sg", "pres.pl", "past.sg", "past.pl", "base"),
    "i": ("c", "v"),
    "k": ("person", "beast", "food", "tool", "text", "place", "item"),
    "o": ("food", "tool", "text", "item"),
}

RULES = """
Intro.pres : 3* Name is a Noun.person.sg.c who V.live.pres.sg Where .
    | Name is an Noun.person.sg.v who V.live.pres.sg Where .
Intro.past : 3* Name was a Noun.person.sg.c who V.live.past.sg Where .
    | Name was an Noun.person.sg.v who V.live.past.sg Where .
Sentence.{t} : 8* Clause.{t} . | 3* Setting , Clause.{t} . | 2* Clause.{t} , Joint Clause.{t} .
    | 2* Under Clause.{t} , Clause.{t} .
Request : tell me about Name . | write about Name and Friend . | describe the day of Name the Person .
    | what happened to Name near NP.place.sg ? | tell a story about Name and NP.item.sg .
    | explain what Name and NP.beast.{n} did Setting .
Person : 3* Noun.person.sg.c | 1* Noun.person.sg.v

Clause.pres : 6* Topic Deed.pres.sg | 2* Person.{n}.pres Deed.pres.{n} | 2* Beast.{n}.pres Stir.pres.{n}
    | 2* Object.{n}.pres State.pres.{n} | 1* there is a N.item.sg.c Where | 1* there are Many Noms.beast.pl Where
Clause.past : 6* Topic Deed.past.sg | 2* Person.{n}.past Deed.past.{n} | 2* Beast.{n}.past Stir.past.{n}
    | 2* Object.{n}.past State.past.{n} | 1* there was a N.item.sg.c Where | 1* there were Many Noms.beast.pl Where
Topic : 3* Pronoun | 2* Name
Person.sg.{t} : 3* NP.person.sg | 2* Friend | NP.person.sg who Deed.{t}.sg | NP.person.sg Where
Person.pl.{t} : 4* NP.person.pl | 2* Name and Friend | NP.person.pl who Deed.{t}.pl | NP.person.pl Where
Beast.{n}.{t} : 5* NP.beast.{n} | NP.beast.{n} that Stir.{t}.{n} | NP.beast.{n} Where
Object.{n}.{t} : 3* NP.item.{n} | NP.tool.{n} | NP.text.{n} | NP.item.{n} that State.{t}.{n} | NP.item.{n} Where

NP.{k}.sg : 6* the Noms.{k}.sg | 6* a N.{k}.sg.c | 2* an N.{k}.sg.v | 2* One Noms.{k}.sg | 1* Own Noms.{k}.sg
NP.{k}.pl : 4* the Noms.{k}.pl | 2* Noms.{k}.pl | 3* Many Noms.{k}.pl | 1* Own Noms.{k}.pl
Noms.{k}.{n} : 3* N.{k}.{n}.c | 1* N.{k}.{n}.v
N.{k}.{n}.{i} : 4* Noun.{k}.{n}.{i} | 1* Adj.{k}.{i} Noms.{k}.{n}
Adjs.{k} : 3* Adj.{k}.c | 1* Adj.{k}.v

Obj.{o} : 5* NP.{o}.{n} | NP.{o}.{n} that Topic Did.{o} | NP.{o}.{n} Where
Obj.person : 3* Friend | 2* NP.person.{n} | NP.person.{n} Where
Did.food : V.eat.past.sg
Did.tool : V.use.past.sg
Did.text : V.read.past.sg
Did.item : V.take.past.sg

Deed.{f} : 3* Act.{f} | Act.{f} Setting | V.want.{f} to Deed.base | V.say.{f} that Clause.{t} | Be.{f} Adjs.person
    | Be.{f} as Adjs.person as Obj.person
Act.{f} : V.rest.{f} | V.rest.{f} Manner | V.rest.{f} Where | 2* V.eat.{f} Obj.food | 2* V.use.{f} Obj.tool
    | 2* V.read.{f} Obj.text | V.read.{f} Obj.text Manner | 2* V.take.{f} Obj.item | V.take.{f} NP.item.{n} To
    | 2* V.move.{f} To | V.visit.{f} NP.place.sg | 2* V.meet.{f} Obj.person | V.meet.{f} Obj.person Where
    | V.tend.{f} NP.beast.{n} | 2* V.give.{f} Obj.person NP.{o}.sg | V.give.{f} NP.{o}.{n} to Obj.person
    | V.cut.{f} NP.food.{n} with NP.tool.sg
Stir.{f} : 2* V.roam.{f} | V.roam.{f} Manner | V.roam.{f} Where | V.chase.{f} NP.beast.{n} | V.chase.{f} Obj.person
    | V.eat.{f} NP.food.{n} | Be.{f} Adjs.beast
State.{f} : 2* Be.{f} Adjs.item | 2* V.stand.{f} Where | V.belong.{f} to Obj.person | Be.{f} Where
Where : Prep NP.place.sg
To : Toward NP.place.sg

Be.pres.sg : is
Be.pres.pl : are
Be.past.sg : was
Be.past.pl : were
Be.base : be
"""

NOUNS = {
    "person": "farmer sailor teacher doctor baker painter writer singer driver nurse student child king queen cook guard hunter "
    "miller tailor merchant neighbour judge priest soldier clerk fisherman potter gardener shepherd builder weaver dancer "
    "artist uncle aunt actor engineer orphan author",
    "beast": "dog cat horse goat cow hen duck fox wolf rabbit mouse bear donkey crow pig pony frog goose lamb badger squirrel "
    "owl otter eagle ox ant",
    "food": "pear loaf cake carrot plum potato biscuit melon pie tomato peach pancake cherry bean nut berry radish turnip "
    "apple egg onion orange olive apricot",
    "tool": "hammer knife rope bucket broom ladder basket needle spade saw brush kettle lamp hook pan net rake shovel "
    "axe oar anvil iron",
    "text": "book letter map poem story song diary message recipe report fable riddle newspaper list "
    "essay article atlas",
    "place": "village harbour market school forest garden river hill bridge library mill tower field castle valley square "
    "bakery station kitchen farm church barn lake workshop road beach inn island orchard office attic",
    "item": "boat cart house gate table chair window wall roof clock coat bell stone box door bench wheel mirror blanket "
    "drum lantern candle umbrella engine organ easel",
}
IRREGULAR_PLURALS = {
    "child": "children", "wolf": "wolves", "mouse": "mice", "goose": "geese", "ox": "oxen", "loaf": "loaves", "potato": "potatoes",
    "tomato": "tomatoes", "knife": "knives", "fisherman": "fishermen", "roof": "roofs",
}  # fmt: skip

ADJECTIVES = {
    "person": "old young tall quiet clever happy tired brave gentle kind proud busy poor rich cheerful patient lazy wise shy "
    "angry eager odd anxious able",
    "beast": "small wild hungry black white fat quick sleepy grey noisy fierce lame old ugly idle active",
    "food": "sweet fresh ripe warm cold soft small round bitter salty enormous old uneven",
    "tool": "sharp heavy long rusty strong short new useless old iron expensive",
    "text": "long short strange famous sad funny boring secret old interesting empty",
    "place": "quiet narrow distant dark green crowded sunny small lonely pretty old empty open ancient",
    "item": "red green blue heavy light new broken clean dirty wooden large small yellow old empty open iron",
}

VERBS = {
    "live": "live work stay",
    "rest": "laugh sleep work wait rest sing dance smile cry listen whistle dream sigh",
    "eat": "eat buy sell cook wash share taste peel",
    "use": "use repair hold borrow find sharpen lose drop hide",
    "read": "read write copy keep lend study finish love hide",
    "take": "carry push paint fix break sell move bring choose",
    "move": "walk run go return hurry travel ride climb",
    "visit": "visit leave reach remember cross",
    "meet": "meet help greet thank teach follow see trust answer invite",
    "tend": "feed call brush lead watch lose train",
    "give": "give show send lend sell offer",
    "cut": "cut open slice peel",
    "want": "want hope try plan learn",
    "say": "say think know believe hear feel guess explain",
    "roam": "run sleep jump hide swim drink wander howl bite rest",
    "chase": "chase follow see bite fear watch",
    "stand": "stand lie fall shine rot remain",
    "belong": "belong matter",
}
IRREGULAR_PASTS = {
    "sleep": "slept", "sing": "sang", "eat": "ate", "buy": "bought", "sell": "sold", "hold": "held", "find": "found", "lose": "lost",
    "hide": "hid", "read": "read", "write": "wrote", "keep": "kept", "lend": "lent", "break": "broke", "bring": "brought",
    "choose": "chose", "run": "ran", "go": "went", "ride": "rode", "leave": "left", "meet": "met", "teach": "taught", "see": "saw",
    "feed": "fed", "lead": "led", "give": "gave", "show": "showed", "send": "sent", "cut": "cut", "say": "said", "think": "thought",
    "know": "knew", "hear": "heard", "feel": "felt", "swim": "swam", "drink": "drank", "bite": "bit", "stand": "stood",
    "lie": "lay", "fall": "fell", "shine": "shone", "drop": "dropped", "plan": "planned",
}  # fmt: skip

NAMES = {
    "he": (
        "Peter",
        "Thomas",
        "Henry",
        "Oliver",
        "Martin",
        "Simon",
        "Edward",
        "Walter",
        "Hugo",
        "Arthur",
        "Felix",
        "Jacob",
    ),
    "she": ("Anna", "Clara", "Emma", "Julia", "Rosa", "Helen", "Martha", "Alice", "Nora", "Vera", "Ida", "Sarah"),
}
ALL_NAMES = frozenset(name for group in NAMES.values() for name in group)
OWN = {"he": "his", "she": "her"}

PHRASES = {
    "Joint": ("and", "but", "so", "yet"),
    "Under": ("when", "while", "because", "although", "if", "before", "after"),
    "Manner": ("slowly", "quickly", "quietly", "carefully", "suddenly", "together", "alone", "happily", "again", "gladly", "badly"),
    "Setting": ("in the morning", "at night", "every day", "in the evening", "in winter", "during the storm", "at noon", "in spring",
                "on the first day", "after the rain", "from time to time", "on holidays", "before sunrise", "in the end"),
    "Prep": ("near", "behind", "beside", "in front of", "outside", "opposite", "not far from", "close to"),
    "Toward": ("to", "toward", "away from", "past", "through"),
    "One": ("this", "that", "every", "another", "each", "no"),
    "Many": ("some", "many", "two", "three", "several", "few", "four", "five", "all", "these", "those", "ten", "seven"),
}  # fmt: skip


def grammar() -> Grammar:
    """Compile the English grammar; units are words and punctuation marks."""
    return compile_grammar(RULES, features=FEATURES, words=_words(), split=lambda text: tuple(text.split()))


def plural(noun: str) -> str:
    """Return the plural of a noun.

    >>> [plural(noun) for noun in ("dog", "fox", "cherry", "donkey", "mouse")]
    ['dogs', 'foxes', 'cherries', 'donkeys', 'mice']
    """
    return IRREGULAR_PLURALS.get(noun) or _add_s(noun)


def past(verb: str) -> str:
    """Return the past tense of a verb.

    >>> [past(verb) for verb in ("walk", "move", "carry", "stay", "sing", "drop")]
    ['walked', 'moved', 'carried', 'stayed', 'sang', 'dropped']
    """
    if verb in IRREGULAR_PASTS:
        return IRREGULAR_PASTS[verb]
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if _ends_in_consonant_y(verb) else verb + "ed"


def _add_s(word: str) -> str:
    if _ends_in_consonant_y(word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh", "o")) else "s")


def _ends_in_consonant_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in "aeiou"


def _words() -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = dict(PHRASES)
    words["Name"] = words["Friend"] = tuple(name for pair in zip(*NAMES.values(), strict=True) for name in pair)
    words["Pronoun"], words["Own"] = tuple(NAMES), tuple(OWN.values())
    for kind, nouns in NOUNS.items():
        for sound, group in _by_sound(nouns):
            words[f"Noun.{kind}.sg.{sound}"] = group
            words[f"Noun.{kind}.pl.{sound}"] = tuple(map(plural, group))
    for kind, adjectives in ADJECTIVES.items():
        words |= {f"Adj.{kind}.{sound}": group for sound, group in _by_sound(adjectives)}
    for kind, verbs in VERBS.items():
        bare = tuple(verbs.split())
        words[f"V.{kind}.pres.sg"] = tuple(map(_add_s, bare))
        words[f"V.{kind}.pres.pl"] = words[f"V.{kind}.base"] = bare
        words[f"V.{kind}.past.sg"] = words[f"V.{kind}.past.pl"] = tuple(map(past, bare))
    return words


def _by_sound(words: str) -> tuple[tuple[str, tuple[str, ...]], tuple[str, tuple[str, ...]]]:
    vowel = tuple(word for word in words.split() if word[0] in "aeiou" and word != "useless")
    return ("c", tuple(word for word in words.split() if word not in vowel)), ("v", vowel)
