"""Terms, postings and BM25: whole and split, stored and merged, and in agreement with rank-bm25."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.rag.kinds import SectionKind, asked_for, section_kind
from avyay.rag.lexical import glossary
from avyay.rag.lexical.bm25 import BM25F, rank_small, score
from avyay.rag.lexical.postings import Postings
from avyay.rag.lexical.tokenise import identifiers, plain, tokenise
from avyay.rag.query import analyse, query_terms

TEXTS = st.lists(
    st.sampled_from(["pod", "node", "disk", "full", "clock", "KubePodDown", "--dry-run", "a_b"]), max_size=12
).map(" ".join)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("KubePodCrashLooping", ["kubepodcrashlooping", "kube", "pod", "crash", "loop"]),
        ("kubelet_node_name", ["kubeletnodename", "kubelet", "node", "name"]),
        ("--dry-run", ["--dry-run", "dryrun", "dri", "run"]),
        ("ORA-00600", ["ora00600", "ora", "00600"]),
        ("PVCs", ["pvc"]),
        ("etcdHighFsyncDurations", ["etcdhighfsyncdurations", "etcd", "high", "fsync", "durat"]),
        ("IPv4 s3 ext4 k8s", ["ipv4", "s3", "ext4", "k8s"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("restarting, restarted; restarts", ["restart", "restart", "restart"]),
        ("Zertifikate für Länder", ["zertifik", "fur", "lander", "fuer", "laender"]),
        ("Überlast_Alarm", ["uberlastalarm", "uberlast", "alarm", "ueberlast"]),
        ("ディスク", ["ディスク", "ディ", "ィス", "スク"]),
        ("réplication de l'hôte", ["replic", "de", "l", "hote"]),
        ("Straße Łódź smørbrød", ["strass", "lodz", "smorbrod"]),
        ("", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert tokenise(text) == terms


@pytest.mark.parametrize(
    "word", ["Zurücksetzen", "réplication", "configuração", "Überlast_Alarm", "ёлка", "naïve", "Ångström"]
)
def test_a_word_is_found_without_its_accents(word: str) -> None:
    bare = "".join(sign for sign in unicodedata.normalize("NFD", word) if not unicodedata.combining(sign))
    assert set(tokenise(bare)) <= set(tokenise(word))
    assert tokenise(unicodedata.normalize("NFD", word)) == tokenise(word)


@pytest.mark.parametrize(
    "word", ["निगरानी", "การตรวจสอบ", "ガイド", "서버"], ids=["hindi", "thai", "japanese", "korean"]
)
def test_vowel_signs_are_no_accents(word: str) -> None:
    assert plain(word) == unicodedata.normalize("NFKC", word)


def test_a_word_is_found_with_its_umlauts_spelt_out() -> None:
    assert set(tokenise("zuruecksetzen")) <= set(tokenise("Zurücksetzen"))


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("Comment réinitialiser le mot de passe de la base ?", {"reinitialis", "mot", "pass", "base"}),
        (
            "Wie setze ich das Passwort für die Datenbank zurück?",
            {"setz", "passwort", "datenbank", "zuruck", "zurueck"},
        ),
        ("como reiniciar o serviço da fila", {"reiniciar", "servico", "fila"}),
        ("is the die temperature of the node too high?", {"die", "temperatur", "node", "high"}),
        ("son process in the container dies", {"son", "process", "contain", "die"}),
        ("alert on the disk", {"alert", "disk"}),
    ],
)
def test_a_query_drops_the_function_words_of_its_language(question: str, terms: set[str]) -> None:
    assert set(query_terms(question)) == terms


def test_spellings_of_one_identifier_meet() -> None:
    spellings = ["KubePodCrashLooping", "kube-pod-crash-looping", "kube_pod_crash_looping", "kube.pod.crash.looping"]
    assert {tuple(identifiers(spelling)) for spelling in spellings} == {("kubepodcrashlooping",)}


@given(st.text(max_size=200))
def test_any_text_has_terms_without_white_space(text: str) -> None:
    assert all(term and not any(character.isspace() for character in term) for term in tokenise(text))


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=12), st.lists(TEXTS, max_size=5), st.data())
def test_merging_equals_building_anew(old: list[str], new: list[str], data: st.DataObject) -> None:
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old))))
    first = Postings.build([("", "", text) for text in old], range(len(old)))
    second = Postings.build([("", "", text) for text in new], range(len(new)))
    left = [text for text, kept in zip(old, keep, strict=True) if kept] + new
    merged = first.merged(keep, second, np.arange(len(left), dtype=np.int32))
    whole = Postings.build([("", "", text) for text in left], range(len(left)))
    for name in ("starts", "rows", "counts", "lengths", "documents", "terms", "kinds"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_postings_read_back(tmp_path: Path) -> None:
    postings = Postings.build([("Title", "Mitigation", "disk full"), ("", "", "node")], [0, 1])
    postings.save(tmp_path / "index")
    loaded = Postings.load(tmp_path / "index")
    assert np.array_equal(loaded.rows, postings.rows)
    assert list(loaded.kinds) == [SectionKind.MITIGATION, SectionKind.OTHER]
    with pytest.raises(OSError):
        Postings.load(tmp_path / "nothing")


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=10), TEXTS)
def test_a_text_scores_exactly_when_rank_bm25_scores_it(texts: list[str], query: str) -> None:
    terms = tokenise(query)
    ours = score(Postings.build([("", "", text) for text in texts], range(len(texts))), dict.fromkeys(terms, 1.0))
    theirs = rank_small([tokenise(text) for text in texts], terms)
    least = rank_small([["nothing"], *[tokenise(text) for text in texts]], terms)[0] if any(texts) else 0.0
    assert least >= 0
    for index, text in enumerate(texts):
        assert (ours.chunk[index] > 0) == bool(set(tokenise(text)) & set(terms))
    order = BM25F(b=(0.75, 0.75, 0.75), k1=1.5, weights=(1, 1, 1))
    same = score(
        Postings.build([("", "", text) for text in texts], range(len(texts))), dict.fromkeys(terms, 1.0), order
    )
    if len(set(terms)) == 1 and any(texts):
        assert int(np.argmax(same.chunk)) in np.flatnonzero(np.isclose(theirs, theirs.max()))


def test_words_in_titles_weigh_more_and_long_texts_less() -> None:
    postings = Postings.build(
        [("disk", "", "filler"), ("node", "", "disk filler"), ("clock", "", "disk " + "filler " * 8)], [0, 1, 2]
    )
    scores = score(postings, {"disk": 1.0}).chunk
    assert scores[0] > scores[1] > scores[2] > 0


def test_a_document_counts_its_title_once() -> None:
    postings = Postings.build([("disk", "", ""), ("disk", "", ""), ("disk", "", "")], [0, 0, 1])
    scores = score(postings, {"disk": 1.0})
    assert scores.document[0] == pytest.approx(scores.document[1])


def test_the_share_of_the_ideal_is_at_most_one() -> None:
    postings = Postings.build([("", "", "disk full"), ("", "", "node")], [0, 1])
    scores = score(postings, {"disk": 1.0, "unheard": 1.0}, added={"full": 0.5})
    assert 0 < scores.chunk.max() < scores.ideal


def test_the_shipped_vectors_belong_to_the_shipped_words() -> None:
    assert glossary.concept_vectors().shape == (len(glossary.entries()), 384)
    assert np.linalg.norm(glossary.concept_vectors(), axis=1) == pytest.approx(1, abs=2e-3)
    names = [name for entry in glossary.entries() for name in entry.names]
    assert len(names) == len(set(names))


def test_phrases_lead_to_names_and_back() -> None:
    assert "mac address" in glossary.phrases("two machines with the same hardware address")
    assert "hardware address" in glossary.phrases("duplicate MAC address")
    assert glossary.phrases("what is the of") == []


@pytest.mark.parametrize(
    ("query", "is_name"),
    [("KubePodCrashLooping", True), ("Watchdog", True), ("why does etcd elect leaders all day", False)],
)
def test_names_are_told_from_sentences(query: str, is_name: bool) -> None:
    analysed = analyse(query)
    assert analysed.is_name is is_name
    assert bool(analysed.added) is not is_name


@pytest.mark.parametrize(
    ("headings", "kind"),
    [
        ("Title Meaning", SectionKind.MEANING),
        ("Diagnosis Possible fixes", SectionKind.MITIGATION),
        ("Troubleshooting", SectionKind.DIAGNOSIS),
        ("", SectionKind.OTHER),
    ],
)
def test_kinds_of_sections(headings: str, kind: SectionKind) -> None:
    assert section_kind(headings) is kind


def test_kinds_that_questions_ask_for() -> None:
    assert asked_for("how do I get back from this") == {SectionKind.MITIGATION}
    assert SectionKind.DIAGNOSIS in asked_for("where do I see why it failed")
    assert asked_for("the disk is full") == frozenset()
