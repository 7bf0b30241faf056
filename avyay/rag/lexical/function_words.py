"""The function words of a few languages: they say how a question is put, not what it is about.

English ones are always left out of a query. Those of another language only where a question is clearly put in it: many
of them mean something elsewhere (`die`, `on`, `per`, `son`).
"""

from __future__ import annotations

import re
from functools import cache

from avyay.rag.lexical.tokenise import STOP_WORDS, plain, stem

__all__ = ["function_words"]

WORD = re.compile(r"[^\W\d_]+")
LEAST = 2  # of them in a question, and more than English ones
# Without accents, as terms are.
OTHERS = {
    "de": """
aber alle als also am an auch auf aus bei bin bis da damit das dass dem den der des die dies diese diesem diesen
dieser dieses doch dort du durch ein eine einem einen einer eines er es fuer fur gegen gibt habe haben hat hier ich
ihr ihre im in ist ja kann kein keine man mein mich mir mit muss nach nicht noch nur ob oder ohne sein seine sich
sie sind so soll ueber uber um und uns unser unter vom von vor wann war warum was weil welche welcher welches wenn
wer werden wie wieder wir wird wo wurde zu zum zur
""",
    "es": """
a al ante como con cual cuando cuanto de del desde donde el ella en entre era es esta este esto estoy ha hace hacer
hay la las le les lo los mas me mi mis muy no nos o para pero por porque que quien se ser si sin sobre son su sus
tambien te tengo tiene tu un una uno y ya yo
""",
    "fr": """
a au aux avec avoir c ce ces cet cette comment d dans de des du elle en est et etre faire fait il ils j je l la le
les leur leurs lorsque lui m ma mais me mes mon n ne nos notre nous on ont ou par pas peut pour pourquoi puis qu
quand que quel quelle quelles quels qui quoi s sa sans se ses si son sont sur t ta te tes ton tu un une va vos votre
vous y
""",
    "it": """
a ad ai al alla alle anche che chi ci come con cosa da dal dalla dei del della delle di dove e ed era essere fare
gli ha hanno ho i il in io la le lo loro ma mi mia mio ne nei nel nella non o per perche piu quale quando quanto
quello questa questo se sei si sono su sua suo sul sulla ti tra tu un una uno vi
""",
    "nl": """
aan al als bij dan dat de der deze die dit door een en er had heb heeft het hier hij hoe ik in is je kan maar me
meer met mijn moet na naar niet nog nu of om omdat onder ons ook op over te tot uit van veel voor waar waarom
wanneer was wat we wel welke werd wie wij wordt zal ze zich zijn zo
""",
    "pt": """
a ao aos as com como da das de do dos e ela ele em entre era essa esse esta este eu faco foi ha isso ja la mais mas
me meu meus minha muito na nas nao nem no nos nossa nosso o onde os ou para pela pelas pelo pelos por porque qual
quando que quem se sem ser seu seus sua suas tambem te tem um uma umas voce
""",
}


def function_words(text: str) -> frozenset[str]:
    """Those of the language a question is put in, as words and as terms; English ones in any case."""
    words = WORD.findall(plain(text).lower())
    found, language = max((sum(word in known for word in words), name) for name, known in _sets().items())
    if found < LEAST or found <= sum(word in STOP_WORDS for word in words):
        return STOP_WORDS
    return STOP_WORDS | _sets()[language]


@cache
def _sets() -> dict[str, frozenset[str]]:
    return {
        name: frozenset(form for word in text.split() for form in (word, stem(word))) for name, text in OTHERS.items()
    }
