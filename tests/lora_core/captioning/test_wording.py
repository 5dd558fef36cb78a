import pytest
from lora_loom.lora_core.captioning.wording import SUBJECTS, Wording, listed, sentence
from lora_loom.lora_core.messages.errors import LoomError


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("The image shows a cat on a sofa.", "A cat on a sofa."),
        ("**Caption:** This picture depicts two dogs.", "Two dogs."),
        ('"A red house"', "A red house"),
        ("<think>\nlet me see\n</think>\n\nA  boat\nat sea.", "A boat at sea."),
        ("<think>never ending", ""),
        ("Sure! Here is a short caption for the picture:\nA tree.", "A tree."),
        ("Sure-footed goats climb.", "Sure-footed goats climb."),
        ("The imagery is bold.", "The imagery is bold."),
        ("", ""),
    ],
)
def test_an_answer_becomes_one_line_without_what_is_no_caption(answer, line):
    assert sentence(answer) == line


def test_every_subject_asks_its_own_question_and_a_person_s_own_goes_before():
    asked = {subject: Wording(subject).asked() for subject in SUBJECTS}
    assert len(set(asked.values())) == len(SUBJECTS)
    assert "Do not describe its face, hair, eyes" in asked["character"]
    assert "no word about its style" in asked["style"]
    assert Wording("style", " What is here? ").asked() == "What is here?"


@pytest.mark.parametrize(
    ("subject", "kept"),
    [
        (
            "everything",
            "1girl, long blonde hair, blue eyes, red dress, beach, sketch, watercolor (medium), hair ribbon",
        ),
        ("character", "1girl, red dress, beach, sketch, watercolor (medium), hair ribbon"),
        ("style", "1girl, long blonde hair, blue eyes, red dress, beach, hair ribbon"),
    ],
)
def test_what_a_subject_s_trigger_stands_for_is_left_out_of_its_tags(subject, kept):
    answer = "1girl, long blonde hair, blue eyes, red dress, beach, sketch, watercolor (medium), beach, hair ribbon"
    assert Wording(subject).finisher(tags=True)(answer) == kept


def test_words_to_leave_out_go_whole_from_tags_and_with_their_commas_from_sentences():
    wording = Wording(leave_out="Watermark, *shirt\nlogo of a brand")
    assert wording.finisher(True)("white shirt, tshirt, watermark, watermarked, shirts") == "watermarked, shirts"
    finish = wording.finisher(False)
    assert finish("A man, tshirt, in the rain, logo of a brand.") == "A man, in the rain."
    assert finish("Watermark on a wall; no watermarks.") == "On a wall; no watermarks."
    assert finish("Watermark.") == ""
    assert finish("Nothing to leave out, here.") == "Nothing to leave out, here."


def test_texts_before_and_behind_stand_once_and_nothing_stands_around_nothing():
    wording = Wording(prepend="photo of", append="film grain")
    assert wording.finisher(True)("a, b") == "photo of, a, b, film grain"
    assert wording.finisher(False)("A cat.") == "photo of A cat. film grain"
    assert wording.finisher(True)("photo of, a, film grain") == "photo of, a, film grain"
    assert wording.finisher(True)("") == ""
    assert Wording(prepend="[trigger],").finisher(False)("A cat.") == "[trigger], A cat."


def test_many_stars_take_no_longer_than_few():
    hostile = Wording(leave_out="*".join("a" * 40) + "b")
    assert hostile.finisher(False)("a" * 5000) == "A" + "a" * 4999
    assert hostile.finisher(True)("a" * 5000) == "a" * 5000


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"subject": "dog"}, "setting.choice"),
        ({"leave_out": ",".join(f"w{n}" for n in range(501))}, "captioning.many_left_out"),
        ({"prepend": "x" * 4001}, "setting.long"),
    ],
)
def test_what_is_out_of_bounds_is_told(values, code):
    with pytest.raises(LoomError) as error:
        Wording(**values)
    assert error.value.message.code == code
    assert error.value.message.field == next(iter(values))


def test_lists_are_read_with_commas_and_lines():
    assert listed(" Red  Hat,blue\n\nred hat, ") == ["red hat", "blue"]
