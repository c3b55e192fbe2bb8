"""Words of the simulated catalogue with rich descriptions (see `ctxrec.datasets.described`).

An aspect is what a user may like or not. It has values, and each value can be told by several phrases, which share few
words. A carrier is the sentence around a phrase; it says nothing that anybody likes. Some phrases of opposite values differ
in one word alone ("never with nuts", "never without its nuts"), and the tone is told by the way a sentence is written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """Something that words tell.

    carriers: sentences around a phrase, `{}`; names in braces stand for words of FILLERS.
    values: the phrases of each value.
    """

    carriers: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


ASPECTS = {
    "nuts": Aspect(
        carriers=(
            "We make it every {day}, {}, in the back of the shop.",
            "The mixture rests overnight, {}, and is shaped on a {colour} board.",
            "A batch takes {number} hours, {}, and cools by the window.",
        ),
        values=(
            ("with chopped nuts folded in", "with nuts all through it", "with something roasted from the walnut tree",
             "never without its nuts", "with almonds in every piece"),
            ("without nuts of any kind", "with the nuts left out", "with nothing from the walnut tree",
             "never with nuts", "safe for those who must not eat almonds"),
        ),
    ),
    "milk": Aspect(
        carriers=(
            "Everything is stirred {} in a {colour} pot.",
            "It is mixed {} and then left alone for {number} hours.",
            "The dough is worked {} until the {day} market opens.",
        ),
        values=(
            ("with butter rather than oil", "with fresh cream, as it used to be", "with milk from the next farm",
             "with nothing in the place of butter", "not without a good deal of cream"),
            ("with oil rather than butter", "without butter or cream", "without anything from a cow",
             "with oats in the place of milk", "not with cream, as others do it"),
        ),
    ),
    "sweetness": Aspect(
        carriers=(
            "Guests from {place} say that it is {}.",
            "Beside a {colour} cup of tea you will find it {}.",
            "On the tongue it is {}, and {crowd} notice at once.",
        ),
        values=(
            ("hardly sweet at all", "far less sweet than it looks", "dry and only faintly sugary",
             "not sweet in the least", "sparing with the honey"),
            ("very sweet indeed", "far sweeter than it looks", "not for those who dislike sugar",
             "nothing less than syrupy", "lavish with the honey"),
            ("sweet, but not too sweet", "neither sweet nor dry", "as sweet as a ripe pear and no more",
             "mildly sugary", "balanced between honey and salt"),
        ),
    ),
    "texture": Aspect(
        carriers=(
            "Bite into it on a {day} and it is {}.",
            "After the journey from {place} it is still {}.",
            "Under the {colour} cloth it stays {} for {number} weeks.",
        ),
        values=(
            ("crisp and quick to snap", "brittle as thin ice", "crunchy right through", "anything but soft",
             "hard enough to crack"),
            ("chewy and slow to give way", "sticky between the teeth", "stretchy and dense",
             "neither crisp nor soft", "something to work on for a while"),
            ("tender and loose", "smooth enough for a spoon", "light as foam", "anything but crisp", "melting at once"),
        ),
    ),
    "maker": Aspect(
        carriers=(
            "It is the work of {} near {place}.",
            "We buy it from {} and send it on every {day}.",
            "Around {place} they know it well, and it is made there by {}.",
        ),
        values=(
            ("two sisters and their mother", "a grandfather and his grandson", "one household",
             "a couple who cook at home", "a family of four"),
            ("the nuns of an old convent", "an order of monks", "a quiet abbey", "brothers in brown habits",
             "a cloister with a bell"),
            ("a large modern plant", "a firm with steel lines", "machines that never stop",
             "four hundred workers in shifts", "an automated hall"),
            ("apprentices in their second year", "a class of young cooks", "pupils under a strict teacher",
             "trainees who still make mistakes", "the students of a trade school"),
        ),
    ),
    "spice": Aspect(
        carriers=(
            "Behind the {colour} label there is {}.",
            "What {place} adds to it is {}.",
            "A note of {} comes late, when {crowd} have stopped talking.",
        ),
        values=(
            ("ginger and a little chilli", "black pepper", "cayenne", "hot mustard seed", "horseradish"),
            ("rose water", "dried lavender", "elderflower", "violets", "jasmine"),
            ("lemon peel", "grated lime", "bitter orange", "bergamot", "grapefruit"),
            ("smoked salt", "burnt wood", "toasted peat", "roasted malt", "charred oak"),
        ),
    ),
    "tone": Aspect(
        carriers=("{}",),
        values=(
            ("Hide it well, or say goodbye to it!", "Go on, the diet starts tomorrow!",
             "It asked us to say hello to you!", "Warning: it is gone the moment you look away!",
             "Yes, you may have it for breakfast, we will not tell!"),
            ("Details of the process are available upon request.", "Please consult the label before use.",
             "Net weight and contents are stated on the reverse.", "The product conforms to the applicable order.",
             "Returns are accepted within thirty days of receipt."),
            ("It tastes of summers that we thought were lost.", "Once every village had it, and few remember.",
             "Close your eyes and the old kitchen is there again.", "Some things ought to stay as they were.",
             "She hummed while it cooled, long ago."),
        ),
    ),
}  # fmt: skip

# What nobody likes or dislikes.
KINDS = (
    "shortbread", "fruit cake", "fudge", "nougat", "gingerbread", "marzipan", "caramels", "biscotti", "fruit jelly",
    "dark truffles", "oat cakes", "plum jam", "meringue", "brittle", "quince paste", "rusks",
)  # fmt: skip
OPENERS = ("{kind} for {crowd}", "{kind} from {place}", "{colour} box of {kind}", "{kind}, number {number}")
FILLERS = {
    "day": ("Monday", "Tuesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "colour": ("red", "blue", "green", "yellow", "white", "grey", "orange", "purple"),
    "number": ("two", "three", "four", "six", "eight", "nine", "twelve"),
    "place": ("Bath", "Lyon", "Bergen", "Porto", "Ghent", "Graz", "Turin", "Cork", "Leiden", "Gdansk"),
    "crowd": ("friends", "neighbours", "a long table", "the office", "children", "late guests"),
}
