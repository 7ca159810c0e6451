"""What is hidden in a haystack and how it is asked for; calibration, selection and test share no wording."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["INSTRUCTIONS", "WORDINGS", "Wording"]


@dataclass(frozen=True)
class Wording:
    """One kind of fact: `needle` is hidden, `question` asks, `lead` starts the answer.

    {who} and {value} are filled in.
    """

    kind: str
    needle: str
    question: str
    lead: str
    who: tuple[str, ...]


def _fact(kind: str, fact: str, question: str, close: str, who: str) -> Wording:
    return Wording(kind, f" {fact} {{value}}. {close} ", question, fact, tuple(who.split(", ")))


_TEST = (
    _fact(
        "code",
        "The secret code of {who} is",
        "What is the secret code of {who}?",
        "Remember it.",
        "Alice, Bruno, Carla, David, Elena, Frank",
    ),
    _fact(
        "locker",
        "The locker number of the {who} is",
        "What is the locker number of the {who}?",
        "Keep it in mind.",
        "swimming pool, library, gym, museum, theatre",
    ),
    _fact(
        "booking",
        "The booking reference for the trip to {who} is",
        "What is the booking reference for the trip to {who}?",
        "Do not lose it.",
        "Lisbon, Oslo, Prague, Cairo, Lima",
    ),
    _fact(
        "invoice",
        "The total of the invoice from {who} was",
        "What was the total of the invoice from {who}?",
        "Note it down.",
        "Baker & Sons, Nordlicht, Acme Tools, Blue River",
    ),
    _fact(
        "phone",
        "The phone extension of the {who} desk is",
        "What is the phone extension of the {who} desk?",
        "Write it down.",
        "sales, support, travel, payroll",
    ),
    _fact(
        "plate",
        "The license plate of the {who} truck ends with",
        "What does the license plate of the {who} truck end with?",
        "Remember this.",
        "red, yellow, green, white",
    ),
    _fact(
        "population",
        "The population of the village of {who} is",
        "What is the population of the village of {who}?",
        "Please remember.",
        "Elmsworth, Dunmore, Oakhaven, Brightwater",
    ),
    _fact(
        "token",
        "The access token for the {who} server is",
        "What is the access token for the {who} server?",
        "Store it safely.",
        "mail, backup, build, print",
    ),
)
_CALIBRATION = (
    _fact(
        "vault",
        "The combination that opens {who}'s vault is",
        "Which combination opens {who}'s vault?",
        "This matters later.",
        "Henry, Irene, Jakob, Klara, Leon",
    ),
    _fact(
        "member",
        "On the membership card of {who} stands the number",
        "Which number stands on the membership card of {who}?",
        "You will be asked.",
        "Mira, Nils, Olga, Peter, Quentin",
    ),
    _fact(
        "parcel",
        "The parcel that was sent to {who} has the tracking number",
        "Which tracking number has the parcel that was sent to {who}?",
        "Make a note.",
        "Madrid, Vienna, Dublin, Athens, Quito",
    ),
    _fact(
        "alarm",
        "To switch off the alarm in the {who}, type",
        "What must be typed to switch off the alarm in the {who}?",
        "Don't forget.",
        "warehouse, bakery, garage, chapel, cinema",
    ),
    _fact(
        "ship",
        "The cargo of the ship {who} weighs in kilograms",
        "How many kilograms does the cargo of the ship {who} weigh?",
        "Keep that figure.",
        "Aurora, Neptune, Sirius, Pelican, Boreas",
    ),
    _fact(
        "lottery",
        "This week {who} won the lottery with ticket",
        "With which ticket did {who} win the lottery?",
        "Bear it in mind.",
        "Rosa, Stefan, Tilda, Ugo, Vera",
    ),
)
_SELECTION = (
    _fact(
        "serial",
        "The serial stamped on the {who} engine reads",
        "What does the serial stamped on the {who} engine read?",
        "Mark this well.",
        "diesel, steam, spare, racing",
    ),
    _fact(
        "meter",
        "When the plumber came, the meter in flat {who} showed",
        "What did the meter in flat {who} show when the plumber came?",
        "Hold on to this.",
        "A, B, C, D",
    ),
    _fact(
        "customer",
        "Letters from {who} must quote customer",
        "Which customer must letters from {who} quote?",
        "Take care to keep it.",
        "Walter, Xenia, Yusuf, Zora",
    ),
    _fact(
        "star",
        "Astronomers list the star {who} under entry",
        "Under which entry do astronomers list the star {who}?",
        "It is needed again.",
        "Mirell, Tovar, Kessin, Aldra",
    ),
)

WORDINGS: Mapping[str, tuple[Wording, ...]] = {
    "calibration": _CALIBRATION,
    "selection": _SELECTION,
    "test": _TEST,
}
INSTRUCTIONS: Mapping[str, str] = {
    "calibration": "Read the document below with care. Some of its facts will be asked for afterwards.\n\n",
    "selection": "Here is a long document. Afterwards, answer from it.\n\n",
    "test": "There is important information hidden in this text. Find it and remember it.\n\n",
}
