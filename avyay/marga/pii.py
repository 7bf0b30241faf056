"""Personal data and credentials in text: found by shape, confirmed by checksum or range where the format has one.

Pure. Nothing found is ever logged; a match knows its kind and place only.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["KINDS", "Match", "PiiKind", "detect", "kinds_in", "luhn", "mod97", "verhoeff"]

PiiKind: TypeAlias = Literal["email", "phone", "card", "iban", "ssn", "aadhaar", "pan", "ip", "api_key"]
KINDS: tuple[PiiKind, ...] = get_args(PiiKind)


@dataclass(frozen=True, slots=True)
class Match:
    """Personal data at `text[start:end]`."""

    kind: PiiKind
    start: int
    end: int


# ---------------------------------------------------------------- checksums


def _digit_rows(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(digit) for digit in row) for row in text.split())


_VERHOEFF_MULTIPLY = _digit_rows(
    "0123456789 1234067895 2340178956 3401289567 4012395678 5987604321 6598710432 7659821043 8765932104 9876543210"
)
_VERHOEFF_PERMUTE = _digit_rows(
    "0123456789 1576283094 5803796142 8916043527 9453126870 4286573901 2793806415 7046913258"
)


# One step of Verhoeff's check: by place (mod 8), check so far and digit.
_VERHOEFF = tuple(
    tuple(bytes(_VERHOEFF_MULTIPLY[check][row[digit]] for digit in range(10)) for check in range(10))
    for row in _VERHOEFF_PERMUTE
)
_DOUBLED = bytes(ord("0") + 2 * d - 9 * (d > 4) for d in range(10))  # a digit twice, its digits added up
_LUHN = bytes(48) + _DOUBLED + bytes(198)
_LETTERS = {ord(letter): str(10 + place) for place, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ")}


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the rest."""
    ascii_digits = digits.encode()
    total = sum(ascii_digits[::-2]) + sum(ascii_digits[-2::-2].translate(_LUHN)) - 48 * len(digits)
    return total % 10 == 0


def verhoeff(digits: str) -> bool:
    """Whether the last digit is the Verhoeff check digit of the rest."""
    check = 0
    for place, digit in enumerate(reversed(digits.encode())):
        check = _VERHOEFF[place & 7][check][digit - 48]
    return check == 0


def mod97(account: str) -> bool:
    """Whether an IBAN without separators, in capitals, has the right check digits (ISO 7064, modulus 97)."""
    return int((account[4:] + account[:4]).translate(_LETTERS)) % 97 == 1


def _iban_lengths(text: str) -> dict[str, int]:
    entries = (entry.split(":") for entry in text.split())
    return {country: int(length) for length, countries in entries for country in countries.split(",")}


# By country (SWIFT registry).
_IBAN_LENGTHS = _iban_lengths(
    "15:NO 16:BE 18:DK,FI,FO,GL,NL,SD,FK 19:MK,SI,MN 20:AT,BA,EE,KZ,LT,LU,XK 21:CH,CR,HR,LI,LV "
    "22:BG,BH,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,TL,SO 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST "
    "26:IS,TR,BI 27:DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE "
    "31:MT,SC 32:LC 33:RU"
)


# ---------------------------------------------------------------- shapes

# Ends of file names, which make `icon@2x.png` and `user@host.service` look like addresses.
_ENDINGS = (
    "png jpg jpeg gif svg webp ico css scss js mjs ts tsx jsx json yaml yml toml py rb rs md txt html service timer "
    "socket target local lock map"
)
_FILE_ENDINGS = frozenset(_ENDINGS.split())
_EMAIL = re.compile(
    r"(?<![\w.+%'-])[\w+%'-]{1,64}(?:\.[\w+%'-]{1,64}){0,8}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}([^\W\d_]{2,24})(?![\w@])"
)
_KEY_SHAPES = (
    r"sk-ant-[A-Za-z0-9_-]{20,}|sk-(?:proj-|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{18,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}"
    r"|r8_[A-Za-z0-9]{30,}|dop_v1_[a-f0-9]{60,}|dapi[a-f0-9]{32}|avy_[A-Za-z0-9_]{16,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_KEY_SHAPES})(?![A-Za-z0-9])")
_KEY_MARKS = re.compile(
    r"sk-|[srp]k_|AKIA|ASIA|gh[pousr]_|github_pat|glpat-|xox|AIza|ya29|SG\.|hf_|npm_|pypi-|gsk_|xai-|r8_|dop_v1"
    r"|dapi|avy_|eyJ"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----.{0,16384}?"
    r"(?:-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_ASSIGNED = re.compile(
    r"(?i)(?<![A-Za-z])(?:api[_-]?key|secret[_-]?(?:access[_-]?)?key|access[_-]?token|auth[_-]?token|client[_-]?secret"
    r"|password|passwd|bearer)[\"']?[ \t]{0,3}(?:[:=][ \t]{0,3}|[ \t])[\"']?"
    r"([A-Za-z0-9_+/=.~-]{12,128})(?![A-Za-z0-9_+/=.~-])"
)
_ASSIGNING = ("key", "token", "secret", "passw", "bearer")  # one of them is in every match
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_PAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z](?![A-Za-z0-9])")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:{1,2}|::){2,8}[0-9A-Fa-f]{0,4}(?:%\w{1,12})?(?![\w:])")
# A run of digits with the separators people write between them; looked at once, tried as every kind of number.
_NUMBER = re.compile(r"(?<![\w.+])(?:\+|00(?=[1-9]))?(?:\((?=\d{1,5}\)))?\d(?:[ \t\u00a0./()-]{0,2}\d){6,60}(?![\w])")
_VERSION_BEFORE = re.compile(r"(?i)(?:version|release|v|==|>=|~=|\^)\s*$")
_SSN_WORD = re.compile(r"(?i)\bssn\b|social\s+security|\btax\s*id")
_AADHAAR_WORD = re.compile(r"(?i)aadh?aar|uidai|आधार")
_PHONE_WORD = re.compile(
    r"(?i)phone|mobile|\bcell\b|\bcall\b|\btel\b|whatsapp|\bfax\b|\bsms\b|contact|\bdial\b|\btext me\b|☎|📞"
)
_NEEDLES = {  # what every match of a word begins with
    _SSN_WORD: ("ssn", "social", "tax"),
    _AADHAAR_WORD: ("aad", "uidai", "आधार"),
    _PHONE_WORD: (
        *("phone", "mobile", "cell", "call", "tel", "whatsapp", "fax", "sms", "contact", "dial", "text me", "☎", "📞"),
    ),
}
_MOST_GROUPS = 6  # groups of digits a number is written in at most
_CONTEXT = 40  # characters before a number in which a word may say what it is
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}$|5[1-5]\d{14}$|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}$|3[47]\d{13}$"
    r"|3(?:0[0-5]|[689]\d)\d{11,16}$|35(?:2[89]|[3-8]\d)\d{12,15}$|6(?:011|4[4-9]\d|5\d\d)\d{12,15}$|62\d{14,17}$"
    r"|(?:50|5[6-8]|6[0-9])\d{14,17}$|8[12]\d{14}$"
)


_SOMETHING = re.compile(r"[\d@]|PRIVATE KEY")  # without any of it no scanner finds anything


def detect(text: str) -> list[Match]:
    """Every piece of personal data in `text`, in order, none overlapping another."""
    if _SOMETHING.search(text) is None:
        return []
    found: list[Match] = []
    for scanner in _SCANNERS:
        found.extend(scanner(text))
    if len(found) < 2:
        return found
    # The earlier starts first; of two at one place the longer, then the one whose scanner is surer, holds.
    found.sort(key=lambda match: (match.start, -match.end))
    kept: list[Match] = []
    for match in found:
        if not kept or match.start >= kept[-1].end:
            kept.append(match)
        elif match.end > kept[-1].end:
            # Overlaps: one stretch, so that masking leaves no half of either.
            kept[-1] = Match(kept[-1].kind, kept[-1].start, match.end)
    return kept


def kinds_in(text: str) -> frozenset[PiiKind]:
    """The kinds of personal data in `text`."""
    return frozenset(match.kind for match in detect(text))


def _emails(text: str) -> Iterator[Match]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if match[1].lower() in _FILE_ENDINGS:
            continue
        if match[0].startswith("git@") and text[match.end() : match.end() + 1] == ":":
            continue  # the address of a repository
        yield Match("email", *match.span())


def _keys(text: str) -> Iterator[Match]:
    if _KEY_MARKS.search(text):
        for match in _KEY.finditer(text):
            if any(c.isdigit() for c in match[0]):  # sk-learn-contrib-something has none
                yield Match("api_key", *match.span())
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield Match("api_key", *match.span())
    folded = text.lower()
    if not any(word in folded for word in _ASSIGNING):
        return
    for match in _ASSIGNED.finditer(text):
        value = match[1]
        mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
        if mixed and len(set(value)) >= 8 and "://" not in value:
            yield Match("api_key", *match.span(1))


def _ibans(text: str) -> Iterator[Match]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        account, end = "", match.start()
        while end < match.end() and len(account) < length:
            account += text[end] if text[end] not in " -" else ""
            end += 1
        if len(account) == length and not text[end : end + 1].isalnum() and mod97(account):
            yield Match("iban", match.start(), end)


def _pans(text: str) -> Iterator[Match]:
    for match in _PAN.finditer(text):
        yield Match("pan", *match.span())


def _addresses(text: str) -> Iterator[Match]:
    for match in _IPV4.finditer(text):
        octets = match[0].split(".")
        if any(int(o) > 255 or (len(o) > 1 and o[0] == "0") for o in octets) or octets[0] in ("0", "127", "255"):
            continue  # no address, or one that names nobody
        if _VERSION_BEFORE.search(text, max(0, match.start() - 10), match.start()):
            continue
        yield Match("ip", *match.span())
    if text.count(":") < 2:
        return
    for match in _IPV6.finditer(text):
        written = match[0]
        groups = [g for g in re.split(":+", written.partition("%")[0]) if g]
        if len(groups) < 2 or not any(len(g) >= 3 for g in groups) or not any(c.isdigit() for c in written):
            continue  # 12:34:56, a::b
        try:
            address = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        if not address.is_loopback:
            yield Match("ip", *match.span())


def _numbers(text: str) -> Iterator[Match]:
    words: _Words | None = None
    for match in _NUMBER.finditer(text):
        words = words or _Words(text)
        run, offset = match[0], match.start()
        digits = _digits(run)
        kind = _number_kind(run, digits, words, offset) if len(digits) <= _MOST_DIGITS else None
        if kind is not None:
            yield Match(kind, offset, match.end())
        elif len(digits) > _LEAST_DIGITS and not run.isdigit():
            # Several numbers in one run ("4111111111111111 2026"): whatever of it stands alone between spaces.
            yield from _inside(run, offset, words)


def _inside(run: str, offset: int, words: _Words) -> Iterator[Match]:
    groups = [(match.start(), match.end(), _digits(match[0])) for match in _GROUP.finditer(run)]
    first = 0
    while first < len(groups):
        start = groups[first][0]
        # How far a number that begins here can go, longest first.
        ends: list[tuple[int, int, str]] = []
        digits = ""
        for last in range(first, min(len(groups), first + _MOST_GROUPS)):
            digits += groups[last][2]
            if len(digits) > _MOST_DIGITS:
                break
            if len(digits) >= _LEAST_DIGITS:
                ends.append((last, groups[last][1], digits))
        for last, end, digits in reversed(ends):
            if end - start == len(run):
                continue
            kind = _number_kind(run[start:end], digits, words, offset + start)
            if kind is not None:
                yield Match(kind, offset + start, offset + end)
                first = last
                break
        first += 1


_LEAST_DIGITS, _MOST_DIGITS = 8, 19
_GROUP = re.compile(r"[^ \t\u00a0]+")
_SEPARATORS = {ord(c): None for c in " \t\u00a0./()+-"}


def _digits(written: str) -> str:
    """The digits of a number as written, in ASCII."""
    digits = written.translate(_SEPARATORS)
    return digits if digits.isascii() else "".join(str(int(c)) for c in digits)


_SSN = re.compile(r"(?!000|666|9)\d{3}([- ]?)(?!00)\d\d\1(?!0000)\d{4}$")
_AADHAAR = re.compile(r"[2-9]\d{3}([ -]?)\d{4}\1\d{4}$")
_CARD_LAYOUT = re.compile(r"\d{13,19}$|(?:\d{4}([ -])){3}\d{1,4}(?:\1\d{3})?$|\d{4}([ -])\d{6}\2\d{4,5}$")
_INTERNATIONAL = re.compile(r"(?:\+|00)[1-9][\d ().\u00a0/-]{6,20}\d$")
_NORTH_AMERICAN = re.compile(r"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}$")
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]?[01]\d[-./ ]?[0-3]\d|[0-3]?\d[-./][01]?\d[-./](?:19|20)\d\d")


_UNKNOWN: list[int] = [-1]


class _Words:
    """Where words stand that say what a number is; found once for a text, and only when a number asks."""

    __slots__ = ("_places", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._places: dict[re.Pattern[str], list[int] | None] = {}

    def before(self, word: re.Pattern[str], start: int) -> bool:
        """Whether the words just before a number name what it is."""
        places = self._places.get(word, _UNKNOWN)
        if places is _UNKNOWN:
            places = self._places[word] = _find_all(self._text, _NEEDLES[word])
        if not places and places is not None:
            return False
        text = self._text
        lead = max(0, start - _CONTEXT)
        if places is None:
            return word.search(text, lead, start) is not None
        place = bisect_left(places, lead)
        while place < len(places) and places[place] < start:
            if word.match(text, places[place], start):
                return True
            place += 1
        return False


def _find_all(text: str, needles: tuple[str, ...]) -> list[int] | None:
    """Where any of the needles begins, in any case; None where lower case shifts places."""
    lower = text.lower()
    if len(lower) != len(text):
        return None
    found = []
    for needle in needles:
        at = lower.find(needle)
        while at >= 0:
            found.append(at)
            at = lower.find(needle, at + 1)
    found.sort()
    return found


def _number_kind(written: str, digits: str, words: _Words, start: int) -> PiiKind | None:
    """What a written number is, if it is anybody's."""
    count = len(digits)
    if not _LEAST_DIGITS <= count <= _MOST_DIGITS:
        return None
    if count >= 13 and luhn(digits) and _CARD_LAYOUT.match(written) and _ISSUERS.match(digits):
        return "card" if len(set(digits)) > 1 else None
    if count == 12 and digits[0] > "1" and verhoeff(digits) and (layout := _AADHAAR.match(written)):
        return "aadhaar" if layout[1] or words.before(_AADHAAR_WORD, start) else None
    if count > 15:
        return None
    if count == 9 and (layout := _SSN.match(written)):
        return "ssn" if layout[1] == "-" or words.before(_SSN_WORD, start) else None
    if written[0] in "+0" and _INTERNATIONAL.match(written) and (written[0] == "+" or words.before(_PHONE_WORD, start)):
        return "phone"
    if count in (10, 11) and _NORTH_AMERICAN.match(written):
        return "phone"
    if count <= 13 and words.before(_PHONE_WORD, start) and not _DATE.match(written):
        return "phone"
    return None


_SCANNERS: tuple[Callable[[str], Iterator[Match]], ...] = (_keys, _ibans, _emails, _pans, _numbers, _addresses)
