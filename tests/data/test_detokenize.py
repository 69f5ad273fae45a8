"""Detokenizers on lines made by hand, each with the text it must become."""

import pytest

from fewstep.data.detokenize import DETOKENIZERS, lambada, lm1b, ptb, scientific_papers, wikitext


@pytest.mark.parametrize(
    ("line", "prose"),
    [
        (" = Old Bridge = \n", " = Old Bridge =\n"),
        (" = = Early years = = \n It opened . ", " == Early years ==\nIt opened. "),
        ("= = = Notes = = =", "=== Notes ==="),
        ("1 @,@ 250 @.@ 5 km of well @-@ kept road", "1,250.5 km of well-kept road"),
        ("Rain , wind ; then : sun ! Why ? No .", "Rain, wind; then: sun! Why? No ."),
        ("the bridge 's arch and the builders ' tools", "the bridge's arch and the builders' tools"),
        ("( built in 1880 ) and [ sic ] and { x }", "(built in 1880) and [sic] and {x}"),
        ('he said " so be it " twice', 'he said "so be it" twice'),
        ("he said ' be it so ' twice", "he said 'be it so' twice"),
        ("at 20 ° C", "at 20°C"),
        ("over N years", "over 1 years"),
        ("wait . . . there", "wait. .. there"),  # as published: the middle one shares its spaces
    ],
)
def test_wikitext(line: str, prose: str) -> None:
    assert wikitext(line) == prose


@pytest.mark.parametrize(
    ("line", "prose"),
    [
        ("the board 's plan does n't hold", "the board's plan doesn't hold"),
        ("investors ' money", "investors' money"),
        ("it rose N N to $ N a share", "it rose 1 1 to $1 a share"),
        ("up N N N N N times", "up 1 1 1 1 1 times"),
        ("the # N maker of <unk> and\\/or more", "the #1 maker of ? and/or more"),
        ("one \n two", "one\ntwo"),
    ],
)
def test_ptb(line: str, prose: str) -> None:
    assert ptb(line) == prose


@pytest.mark.parametrize(
    ("line", "prose"),
    [
        ("It 's late . We 'll go .", "It's late. We'll go."),
        ("Really ? Yes ! Is it ?", "Really? Yes! Is it?"),
        ("Stop !", "Stop!"),
        ("bread , milk ; note : and / or", "bread, milk; note: and/or"),
        ("see http : / / a.example or https : / / b.example", "see http://a.example or https://b.example"),
        ('the " old town " is ( very ) [ quite ] old', 'the "old town" is (very) [quite] old'),
        ("it cost $ 5 or £ 4", "it cost $5 or £4"),
    ],
)
def test_lm1b(line: str, prose: str) -> None:
    assert lm1b(line) == prose


def test_lambada() -> None:
    assert lambada("  “ come in , ” she said \n") == '\n" come in , " she said'


def test_scientific_papers_are_wikitext_and_then_lm1b() -> None:
    line = "the mean @-@ field limit ( see eq . 3 ) is n @.@ 5 ; we 'll show it ."
    assert scientific_papers(line) == "the mean-field limit (see eq. 3) is n.5; we'll show it."


def test_plain_prose_stays_as_it_is() -> None:
    prose = "A plain line (with a bracket), a well-kept road; and “it's” done: yes!"
    assert {name: f(prose) for name, f in DETOKENIZERS.items() if name != "lambada"} == dict.fromkeys(
        ("wikitext", "ptb", "lm1b", "scientific-papers"), prose
    )
