"""Which class a written answer names: a table of answers, each with what the rules must make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz

from fllm.data import DIAGNOSES
from fllm.evaluation.negation import negated, words_of
from fllm.evaluation.rules import GRACIOUS, STRICT, class_of, diagnosis_of, parse_answer, read_class, read_diagnosis

APP, CHO, DIV, PAN = "appendicitis", "cholecystitis", "diverticulitis", "pancreatitis"

# answer, by the strict rules, by the gracious rules, why
ANSWERS: list[tuple[str, str | None, str | None, str]] = [
    # names
    ("appendicitis", APP, APP, "the name alone"),
    (" Cholecystitis", CHO, CHO, "case and blanks"),
    ("DIVERTICULITIS!", DIV, DIV, "punctuation"),
    ("acute biliary pancreatitis", PAN, PAN, "the name with adjectives"),
    ("Acute-on-chronic pancreatitis", PAN, PAN, "a hyphenated adjective"),
    ("gallstone-induced pancreatitis", PAN, PAN, "a hyphen does not hide the name behind it"),
    ("pancreatitis-induced ileus", None, None, "but hides the one before it, as punctuation is dropped"),
    ("appendicitis/diverticulitis", None, None, "so does a slash: no single answer"),
    ("perforated appendicitis with abscess", APP, APP, "complications change nothing"),
    ("acute calculous cholecystitis (K80.00)", CHO, CHO, "a code in brackets"),
    # misspelt: ratio above 90
    ("appendictis", APP, APP, "95.7"),
    ("apendicitis", APP, APP, "95.7"),
    ("appencitis", APP, APP, "90.9 rounds to 91"),
    ("cholecystits", CHO, CHO, "96.0"),
    ("cholocystitis", CHO, CHO, "92.3"),
    ("divertculitis", DIV, DIV, "96.3"),
    ("pancreatitides", PAN, PAN, "92.3, the plural"),
    ("prediverticulitis", None, None, "90.3 rounds to 90, which is not above it"),
    # near misses
    ("diverticulosis", None, None, "85.7: no inflammation"),
    ("diverticular disease", None, None, "no modifier"),
    ("pancreatic cancer", None, None, "81.8, and no modifier"),
    ("pancreatic pseudocyst", None, None, "no modifier"),
    ("cholelithiasis", None, None, "stones alone: 66.7"),
    ("choledocholithiasis", None, None, "stones in the duct"),
    ("cholecystectomy", None, None, "the operation: 71.4"),
    ("appendectomy", None, None, "the operation is no diagnosis"),
    ("appendix", None, None, "a place without what is wrong with it"),
    ("periappendicitis", None, None, "85.7, and no modifier"),
    ("acuteappendicitis", None, None, "a blank is missing: 82.8"),
    ("hepatitis", None, None, "66.7 to pancreatitis"),
    ("gastroenteritis", None, None, "another disease"),
    ("colitis", None, None, "without a place"),
    ("small bowel obstruction", None, None, "another disease"),
    ("normal", None, None, "no disease"),
    ("", None, None, "nothing"),
    (" \n ", None, None, "nothing but blanks"),
    ("...", None, None, "nothing but punctuation"),
    # place and modifier: strict
    ("perforated appendix", APP, APP, "perf"),
    ("ruptured appendix", APP, APP, "rupture"),
    ("gangrenous appendix", APP, APP, "gangren"),
    ("infected appendix", APP, APP, "infect"),
    ("inflammation of the appendix", APP, APP, "inflam, behind"),
    ("appendiceal abscess", APP, APP, "abscess, and another form of the place"),
    ("necrosis of the appendix", APP, APP, "necros"),
    ("inflamed vermiform appendices", APP, APP, "appendi, the plural"),
    ("gallbladder inflammation", CHO, CHO, "inflam"),
    ("infection of the gallbladder", CHO, CHO, "infect"),
    ("gangrenous gallbladder", CHO, CHO, "gangren"),
    ("gallbladder abscess", CHO, CHO, "abscess"),
    ("necrosis of gallbladder wall", CHO, CHO, "necros"),
    ("gallbladder perforation", CHO, CHO, "perf"),
    ("gallbladder rupture", None, None, "rupture is no modifier here"),
    ("inflamed gall bladder", None, None, "two words are not the place"),
    ("gall-bladder inflammation", CHO, CHO, "but a hyphen is dropped"),
    ("ascending cholangitis", CHO, CHO, "counts as it is"),
    ("infected diverticulum", DIV, DIV, "infect"),
    ("diverticular abscess", DIV, DIV, "abscess"),
    ("inflamed colonic diverticula", DIV, DIV, "inflam"),
    ("perforated diverticulum", DIV, DIV, "perf"),
    ("rupture of a diverticulum", DIV, DIV, "rupture"),
    ("gangrenous diverticulum", None, None, "gangren is no modifier here"),
    ("necrotic diverticulum", None, None, "necros is no modifier here either"),
    ("pancreatic necrosis", PAN, PAN, "necros"),
    ("infected pancreatic fluid collection", PAN, PAN, "infect"),
    ("inflammation of the pancreas", PAN, PAN, "inflam"),
    ("abscess of the pancreas", PAN, PAN, "abscess"),
    ("gangrene of the pancreas", PAN, PAN, "gangren"),
    ("pancreatic perforation", None, None, "perf is no modifier here"),
    ("necrotizing pancreas", None, None, "necroti is not necros"),
    # gracious
    ("acute gallbladder disease", None, CHO, "gracious"),
    ("Acute gallbladder attack", None, CHO, "gracious"),
    ("gallbladder disease", None, None, "not acute"),
    ("acute biliary colic", None, CHO, "gracious"),
    ("biliary colic", None, None, "not acute"),
    ("acute colonic perforation", None, DIV, "gracious"),
    ("colonic perforation", None, None, "not acute"),
    ("perforated sigmoid colon", None, DIV, "gracious"),
    ("sigmoid colitis", None, DIV, "gracious"),
    ("sigmoid volvulus", None, None, "another disease of the place"),
    ("acute gallbladder disease without colic", None, CHO, "what is denied is another modifier"),
    # denied before
    ("no evidence of appendicitis", None, None, "no evidence of"),
    ("no appendicitis", None, None, "no"),
    ("The patient does not have acute appendicitis", None, None, "not, with words in between"),
    ("Absence of typical signs and symptoms of appendicitis", None, None, "cut at 'and': names nothing"),
    ("absence of typical signs of appendicitis", None, None, "absence of"),
    ("abdominal pain without cholecystitis", None, None, "without"),
    ("negative for acute diverticulitis", None, None, "negative for"),
    ("rule out appendicitis", None, None, "rule out"),
    ("r/o pancreatitis", None, None, "its abbreviation"),
    ("patient denies pancreatitis", None, None, "denies"),
    ("this isn't appendicitis", None, None, "a contraction"),
    ("unlikely appendicitis", None, None, "unlikely, before"),
    ("no sign of inflammation of the gallbladder", None, None, "both pieces are denied"),
    ("gallbladder without inflammation", None, None, "the modifier is denied"),
    ("non-inflamed gallbladder", None, None, "non"),
    ("nonperforated appendix", None, None, "non within the word"),
    ("nonperforated appendicitis", APP, APP, "non reaches one word"),
    ("no fever in a patient who came in with diverticulitis", DIV, DIV, "more than five words away"),
    # denied behind
    ("appendicitis ruled out", None, None, "ruled out"),
    ("acute cholecystitis was ruled out", None, None, "was ruled out"),
    ("pancreatitis is unlikely", None, None, "unlikely"),
    ("diverticulitis excluded", None, None, "excluded"),
    # looks denied and is not
    ("appendicitis cannot be ruled out", APP, APP, "cannot be ruled out"),
    ("cannot exclude cholecystitis", CHO, CHO, "cannot exclude"),
    ("no doubt pancreatitis", PAN, PAN, "no doubt"),
    ("not only pancreatitis", PAN, PAN, "not only"),
    ("gram negative cholecystitis", CHO, CHO, "gram negative"),
    ("pancreatitis without necrosis", PAN, PAN, "a complication is denied"),
    ("nothing but appendicitis", APP, APP, "'nothing' denies nothing here"),
    # scope ends
    ("no stones but cholecystitis", CHO, CHO, "but"),
    ("not cholecystitis but rather pancreatitis", PAN, PAN, "but, rather"),
    ("no abscess however diverticulitis", DIV, DIV, "however"),
    ("no perforation although appendicitis", APP, APP, "although"),
    ("pain of no clear kind secondary to pancreatitis", PAN, PAN, "secondary to"),
    ("pancreatitis rather than cholecystitis", PAN, PAN, "rather than"),
    # several: the first item counts
    ("cholecystitis vs cholangitis", CHO, CHO, "vs"),
    ("Pancreatitis vs. Appendicitis", PAN, PAN, "vs."),
    ("appendicitis versus diverticulitis", APP, APP, "versus"),
    ("diverticulitis or appendicitis", DIV, DIV, "or"),
    ("pancreatitis and cholecystitis", PAN, PAN, "and"),
    ("cholelithiasis, cholecystitis", None, None, "the first item names none"),
    ("no appendicitis, diverticulitis", None, None, "nor does a denied first item"),
    ("appendicitis. The gallbladder is inflamed", APP, APP, "full stop"),
    ("pancreatitis\nappendicitis", PAN, PAN, "new line"),
    ("cholecystitis with pancreatitis", CHO, CHO, "two in one item: the first"),
    ("infected gallbladder next to the appendix", CHO, CHO, "one modifier, two places: the first place"),
    ("disorder", None, None, "'or' within a word does not cut"),
    # headings, sections, lists
    ("Final Diagnosis: Acute Appendicitis", APP, APP, "heading"),
    ("diagnosis: diverticulitis", DIV, DIV, "its short form"),
    ("The labs suggest pancreatitis. Final Diagnosis: cholecystitis", CHO, CHO, "what stands before does not count"),
    ("Final Diagnosis:\nAcute appendicitis\n\nTreatment:\nAppendectomy", APP, APP, "over several lines"),
    ("Diagnosis: abdominal pain. Treatment: surgery for appendicitis", None, None, "a treatment is no diagnosis"),
    ("Diagnosis: ileus Treatment: as for appendicitis", None, None, "nor is one within a line"),
    ("Diagnosis: cholecystitis Treatment: cholecystectomy", CHO, CHO, "treatment within a line"),
    ("Final Diagnosis: Appendicitis\nBest Treatment Plan: Appendectomy", APP, APP, "another heading of treatment"),
    ("pancreatitis. Rationale: no signs of it elsewhere", PAN, PAN, "rationale"),
    ("Rationale: the lipase says pancreatitis", None, None, "a rationale alone is no answer"),
    ("ileus\nNote: pancreatitis is possible", None, None, "note"),
    ("ileus\nOther diagnoses considered: appendicitis", None, None, "other diagnoses"),
    ("Based on the findings:\n\nacute cholecystitis", CHO, CHO, "introduction"),
    ("1. Diverticulitis\n2. Appendicitis", DIV, DIV, "numbered list"),
    ("The following:\n1) perforated appendix - surgical\n2) colitis", APP, APP, "numbered otherwise, explained"),
    ("1. Ileus - from pancreatitis", None, None, "explanations are cut"),
    ("* cholecystitis\n* pancreatitis", CHO, CHO, "list of stars"),
    ("**Pancreatitis**", PAN, PAN, "bold"),
    ("- diverticulitis", DIV, DIV, "a dash"),
    ("The most likely diagnosis is acute appendicitis.", APP, APP, "a sentence"),
    ("The diagnosis of pancreatitis is unlikely.", None, None, "a sentence that denies"),
    ("The patient has acute cholecystitis", CHO, CHO, "patient has"),
    ("The patient has no cholecystitis", None, None, "patient has no"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "strict", "gracious", "why"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_answer(answer: str, strict: str | None, gracious: str | None, why: str) -> None:
    assert diagnosis_of(answer, gracious=False) == strict, why
    assert diagnosis_of(answer) == gracious, why


def test_table_is_large_and_names_every_answer_once() -> None:
    assert len({row[0] for row in ANSWERS}) == len(ANSWERS) >= 90


def test_table_meets_every_modifier() -> None:
    """Take any modifier away, and an answer of the table changes."""
    for rules, column in ((STRICT, 1), (GRACIOUS, 2)):
        for name, signs in rules.items():
            accepted = [row[0].lower() for row in ANSWERS if row[column] == name and name not in row[0].lower()]
            for sign in signs:
                for modifier in sign.modifiers:
                    assert any(sign.location in text.replace("-", "") and modifier in text for text in accepted), (
                        modifier
                    )


def test_rules_are_those_of_the_four_diagnoses() -> None:
    assert set(STRICT) == set(GRACIOUS) == set(DIAGNOSES)


@pytest.mark.parametrize("name", DIAGNOSES)
def test_no_name_resembles_another(name: str) -> None:
    assert all(fuzz.ratio(name, other) < 80 for other in DIAGNOSES if other != name)


@given(st.sampled_from(DIAGNOSES), st.text(alphabet="xyz ,.\n-", max_size=20))
def test_a_name_in_front_is_found_whatever_follows(name: str, rest: str) -> None:
    assert diagnosis_of(f"{name} {rest}") == name


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    strict, gracious = read_diagnosis(text, gracious=False), read_diagnosis(text)
    assert strict.label in (None, *DIAGNOSES)
    assert gracious.label is not None or strict.label is None
    assert class_of(text, ("heart", "kidney failure")) in (None, "heart", "kidney failure")


@pytest.mark.parametrize(
    ("answer", "item"),
    [
        ("Final Diagnosis: Acute Appendicitis", "Acute Appendicitis"),
        ("Final Diagnosis:", ""),
        ("diagnosis: Abdominal pain\nTreatment Plan: rest\nFinal Diagnosis: Appendicitis", "Abdominal pain"),
        ("ileus, appendicitis", "ileus"),
        ("1. Gallstone-induced pancreatitis: lipase", "Gallstone-induced pancreatitis"),
        ("The final diagnosis for this patient is ileus. It is severe", "ileus"),
        ("Appendicitis. Best Treatment Plan: Appendectomy", "Appendicitis"),
    ],
)
def test_item_that_counts(answer: str, item: str) -> None:
    assert parse_answer(answer) == item


@pytest.mark.parametrize(
    ("answer", "ambiguous"),
    [
        ("appendicitis", False),
        ("acute appendicitis, perforated appendix", False),  # one class by two names
        ("cholecystitis vs cholangitis", False),
        ("cholecystitis vs pancreatitis", True),
        ("pancreatitis with inflamed gallbladder", True),
        ("ileus, appendicitis or diverticulitis", True),  # though the first item names none
        ("appendicitis, no cholecystitis", False),
        ("no evidence of appendicitis or pancreatitis", False),  # the second item denies nothing: the only one named
        ("appendicitis. Note: not pancreatitis, maybe diverticulitis", False),
        ("appendicitis\nTreatment: as for cholecystitis", False),
        ("ileus", False),
    ],
)
def test_more_than_one_class_is_told(answer: str, ambiguous: bool) -> None:
    assert read_diagnosis(answer).ambiguous is ambiguous


CLASSES = ("Heart disease", "lung", "lung cancer", "Type 1 diabetes", "Type 2 diabetes", "eye & ear")


@pytest.mark.parametrize(
    ("answer", "label", "ambiguous"),
    [
        ("heart disease", "Heart disease", False),
        ("The answer: HEART-disease", None, False),  # a hyphen glues words
        ("hart disease", "Heart disease", False),  # 96
        ("heart", None, False),  # part of a name
        ("lung", "lung", False),
        ("lungs", None, False),  # 88.9
        ("a lung cancer", "lung cancer", False),  # the longer of two that overlap
        ("lung, then cancer", "lung", False),
        ("type 2 diabetes", "Type 2 diabetes", False),  # 93 to the other as well
        ("type 2 diabetes, not type 1 diabetes", "Type 2 diabetes", False),
        ("not type 1 diabetes", None, False),
        ("lung or heart disease", "lung", True),
        ("\n\nheart disease\nlung", "Heart disease", False),  # the first line
        ("Eye and ear", None, False),  # 78
        ("eye  ear", "eye & ear", False),  # signs count as little as blanks
        ("", None, False),
        ("something else", None, False),
    ],
)
def test_class_of_any_other_task(answer: str, label: str | None, ambiguous: bool) -> None:
    found = read_class(answer, CLASSES)
    assert (found.label, found.ambiguous) == (label, ambiguous)
    assert class_of(answer, CLASSES) == label


@pytest.mark.parametrize("between", range(8))
def test_a_denial_reaches_five_words(between: int) -> None:
    words = ["no", *["word"] * between, "colitis"]
    assert negated(words, len(words) - 1, len(words)) is (between <= 5)
    words = ["colitis", *["word"] * between, "unlikely"]
    assert negated(words, 0, 1) is (between <= 5)


def test_a_denial_inside_a_name_denies_nothing() -> None:
    assert not negated(words_of("no finding"), 0, 2)


def test_scope_ends_behind_as_well() -> None:
    assert negated(words_of("colitis which is unlikely"), 0, 1) is False
    assert negated(words_of("colitis is unlikely"), 0, 1) is True


def test_words_are_bare() -> None:
    assert words_of("Isn't r/o  Non-infected, nonspecific_x") == ["isnt", "ro", "non", "infected", "nonspecificx"]
