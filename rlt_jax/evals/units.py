"""Read units of measurement: which are the same, and which words after a number are no units."""

import re

MOST_CHARACTERS = 60  # of a unit

SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
CURRENCIES = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}

_WORDS = {  # canonical sign: its other spellings
    "m": "meter metre", "km": "kilometer kilometre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "g": "gram gramme gm", "kg": "kilogram kilo", "mg": "milligram", "t": "ton tonne", "lb": "lbs pound", "oz": "ounce",
    "s": "second sec", "min": "minute mins", "h": "hour hr hrs", "d": "day", "week": "", "month": "", "yr": "year",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mph": "", "kmh": "kph", "acre": "",
    "L": "l liter litre", "mL": "ml milliliter millilitre", "gal": "gallon", "N": "newton", "J": "joule", "W": "watt",
    "V": "volt", "A": "ampere amp", "Ω": "ohm \\Omega", "Hz": "hertz", "Pa": "pascal", "K": "kelvin", "mol": "mole",
    "C": "coulomb", "F": "farad", "T": "tesla", "eV": "", "cal": "calorie", "kcal": "", "kWh": "", "Wh": "", "bit": "",
    "B": "byte", "rad": "radian", "°": "degree deg", "°C": "celsius", "°F": "fahrenheit", "%": "percent pct", "bar": "",
    "atm": "", "$": "dollar usd", "€": "euro eur", "£": "gbp", "¥": "yen jpy yuan", "₹": "rupee inr", "¢": "cent",
    "unit": "", "u": "", "dB": "", "ppm": "",
}  # fmt: skip
_PREFIXES = ("k", "M", "G", "T", "m", "µ", "n", "p", "c", "d", "h")
_PREFIXED = ("m", "g", "s", "L", "N", "J", "W", "V", "A", "Ω", "Hz", "Pa", "K", "mol", "C", "F", "T", "eV", "bit", "B")
_KNOWN = {sign: sign for sign in _WORDS}
_KNOWN |= {
    prefix + sign: prefix + sign for sign in _PREFIXED for prefix in _PREFIXES if prefix + sign not in (*_KNOWN, "pm")
}
_KNOWN |= {name: sign for sign, names in _WORDS.items() for name in names.split()}
_KNOWN |= {name + "s": sign for sign, names in _WORDS.items() for name in (sign, *names.split()) if len(name) > 2}
_CHANGERS = (  # words after a number that make another of it
    "plus minus over divided multiplied squared cubed factorial point mod modulo half halves third thirds quarter "
    "quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths "
    "hundredth hundredths thousandth thousandths hundreds thousands millions billions dozens pair pairs score "
    "choose remainder repeating pi am pm o'clock root log sin cos tan exp sqrt infinity power base "
    "bc ad k mil"
)
CHANGERS = frozenset(_CHANGERS.split())
_JOINERS = (  # words that join a number with another, or begin a clause
    "or and to not nor but than by below above through until each versus out is are was equals equal because since"
)
_NO_THINGS = CHANGERS | set(SCALES) | set(_JOINERS.split())
_FACTOR = re.compile(
    r"(?:(?P<before>square|sq\.?|cubic|cu\.?)\s+)?(?P<name>°\s?[CF]?|\\Omega|[A-Za-zµΩ%$€£¥₹¢]+)"
    r"(?:\s?\^?\s?\{?(?P<power>-?[1-9])\}?|\s?(?P<after>squared|cubed))?"
)
_JOINT = re.compile(r"\s*(?:(?P<over>/|\bper\b)|·|\*|×|\\cdot|\\times)\s*|\s+")


def unit_of(text: str) -> str | None:
    """The unit in canonical form (`m s^-2`), "" if `text` is blank, None if it is no unit.

    Up to four words of at least three letters count as things ("red apples"), unless one of them changes the number.
    """
    text = text.strip()
    if not text:
        return ""
    return measure_of(text) or things_of(text)


def measure_of(text: str) -> str | None:
    """Units of measurement joined by `/`, `per`, `·` or a blank, each with a power, in canonical form."""
    if len(text) > MOST_CHARACTERS:
        return None
    text = re.sub(r"\bper\s?cent(?:age)?\b", "percent", text)
    text = re.sub(r"^degrees?\s+(?=celsius|fahrenheit|[CF]$)", "", text, flags=re.IGNORECASE)
    powers: dict[str, int] = {}
    position, sign = 0, 1
    while True:
        factor = _FACTOR.match(text, position)
        known = factor and _name(factor["name"])
        if not factor or not known:
            return None
        word = (factor["before"] or factor["after"] or "")[:2]
        power = int(factor["power"] or {"sq": 2, "cu": 3}.get(word, 1))
        powers[known] = powers.get(known, 0) + sign * power
        position = factor.end()
        if position == len(text):
            return " ".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()))
        joint = _JOINT.match(text, position)
        if not joint:
            return None
        sign = -1 if joint["over"] else sign
        position = joint.end()


def _name(text: str) -> str | None:
    text = text.replace("° ", "°")
    return _KNOWN.get(text) or (_KNOWN.get(text.casefold()) if len(text) > 2 else None)


def things_of(text: str) -> str | None:
    """Words that say what was counted, in the singular as far as a final s goes."""
    if len(text) > MOST_CHARACTERS:
        return None
    words = text.casefold().split()
    if len(words) > 4 or not all(re.fullmatch(r"[a-z]{3,}(?:-[a-z]+)?", word) for word in words):
        return None
    return None if _NO_THINGS & set(words) else " ".join(word.removesuffix("s") for word in words)
