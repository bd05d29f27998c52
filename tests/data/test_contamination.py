"""The leak check in every script, and from both sides: what was seen and what is scored are taken apart."""

import unicodedata

import numpy as np
import pytest

from contrans_dist.data.contamination import leak_report, overlap, unit_hash, unit_hashes

STORIES = {
    # Three sentences, as they are written: the second is the scenario, the third is of another one.
    "Chinese": ("天很晚了。", "你在苹果里发现了一条虫子。", "你在学校里丢了一本新书。"),
    "Chinese, excited": ("天很晚了!", "你在苹果里发现了一条虫子！", "你在学校里丢了一本新书？"),
    "Japanese": ("夜でした。", "りんごの中に虫を見つけました。", "学校で新しい本をなくしました。"),
    "Japanese, spoken": ("「夜だよ。」", "「りんごの中に虫を見つけたの。」", "「新しい本をなくしたの?」"),
    "Korean": ("시간이 늦었다. ", "너는 사과에서 벌레를 찾았다. ", "너는 학교에서 책을 잃었다. "),
    "Hindi": ("देर हो गई। ", "तुम्हें सेब में एक कीड़ा मिला। ", "तुमने स्कूल में नई किताब खो दी। "),
    "Bengali": ("দেরি হয়ে গেছে। ", "তুমি আপেলের মধ্যে একটা পোকা পেলে। ", "তুমি স্কুলে নতুন বইটা হারালে। "),
    "Arabic": ("كان الوقت متأخرا. ", "هل وجدت دودة في تفاحتك؟ ", "فقدت كتابك الجديد في المدرسة. "),
    "Urdu": ("دیر ہو گئی۔ ", "تمہیں سیب میں ایک کیڑا ملا۔ ", "تم نے اسکول میں نئی کتاب کھو دی۔ "),
    "Thai": ("ดึกมากแล้ว ", "คุณพบหนอนในแอปเปิลของคุณ ", "คุณทำหนังสือใหม่หายที่โรงเรียน "),
    "Khmer": ("យប់ជ្រៅហើយ។ ", "អ្នកបានរកឃើញដង្កូវនៅក្នុងផ្លែប៉ោម។ ", "អ្នកបានបាត់សៀវភៅថ្មីនៅសាលារៀន។ "),
    "Myanmar": ("ညဉ့်နက်နေပြီ။ ", "မင်းပန်းသီးထဲမှာပိုးကောင်တွေ့တယ်။ ", "မင်းကျောင်းမှာစာအုပ်အသစ်ပျောက်တယ်။ "),
    "Greek": ("Ήταν αργά. ", "Βρήκες ένα σκουλήκι στο μήλο; ", "Έχασες το νέο βιβλίο στο σχολείο. "),
    "Armenian": ("Արդեն ուշ էր։ ", "Դու որդ գտար քո խնձորի մեջ։ ", "Դու կորցրեցիր քո նոր գիրքը դպրոցում։ "),
    "Amharic": ("ጊዜው መሽቷል። ", "በፖምህ ውስጥ አንድ ትል አገኘህ። ", "በትምህርት ቤት አዲስ መጽሐፍ ጠፋብህ። "),
    "Russian": ("Было поздно. ", "Ты нашёл червяка в своём яблоке. ", "Ты потерял новую книгу в школе. "),
    "Turkish": ("Saat çok geçti. ", "ELMANIN İÇİNDE BİR KURT BULDUN. ", "Okulda yeni bir kitap kaybettin. "),
    "German, quoted": ("Es war spät. ", "„Du hast einen Wurm im Apfel.“ ", "Du hast dein Buch verloren. "),
    "English, quoted": ('He said "No." ', 'It was "a worm in your apple." ', "You lost a book at school. "),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_scenario_is_found_in_a_story_in_its_script(story: tuple[str, str, str]) -> None:
    before, scenario, other = story
    seen = unit_hashes([before + scenario + before])
    assert overlap([scenario], seen) == [scenario]
    assert overlap([other], seen) == []
    assert overlap([before], seen) == []  # too short: it is in every story


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_scored_text_is_taken_apart_too(story: tuple[str, str, str]) -> None:
    before, scenario, other = story
    scored = [before + scenario + other, before + other]
    assert overlap(scored, unit_hashes([scenario])) == scored[:1]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("你在苹果里发现了一条虫子。", "你 在 苹果 里 发现 了 一条 虫子"),  # as a word segmenter leaves it
        ("「りんごの中に虫を見つけました!」", "りんごの中に虫を見つけました"),
        ("ﾘﾝｺﾞのなかにむしをみつけました", "リンゴのなかにむしをみつけました"),
        ("场景：你在苹果里发现了一条虫子。", "你在苹果里发现了一条虫子"),
        ("परिदृश्य: तुम्हें सेब में एक कीड़ा मिला।", "तुम्हें सेब में एक कीड़ा मिला"),
        ("Ｙｏｕ　ｆｉｎｄ　ａ　ｗｏｒｍ．", "You find a worm."),
        ("Le chat a mangé ta pomme.", unicodedata.normalize("NFD", "LE CHAT A MANGÉ TA POMME")),
        ("Die Straße ist heute gesperrt.", "DIE STRASSE IST HEUTE GESPERRT"),
        ("Ο σκύλος έφαγε ο Γιώργος", "Ο ΣΚΎΛΟΣ ΈΦΑΓΕ Ο ΓΙΏΡΓΟΣ"),
        ("You find a wo\u00adrm in it ❤️!", "You find a worm in it"),
        ("\u200bYou\u00a0find a worm\u3000in it…", "You find a worm in it"),
        ("나는 사과에서 벌레를 발견했다", "나는 사과에서 벌레를 발견 했다."),
    ],
)
def test_one_text_in_two_spellings(one: str, same: str) -> None:
    assert unit_hash(one) is not None
    assert unit_hash(one) == unit_hash(same)


@pytest.mark.parametrize(
    "short",
    [
        "他笑了。",
        "彼は笑った。",
        "ありがとうございます",
        "เขายิ้ม",
        "ขอบคุณครับ",
        "그는 웃었다.",
        "वह हँसा।",
        "\ud83d",
        "",
        "!!!",
    ],
)
def test_what_every_text_says_proves_nothing(short: str) -> None:
    assert unit_hash(short) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("You find a worm in your apple.", 6918865429606509365),
        ("Scenario: You find a worm, in your APPLE!", 6918865429606509365),
        ("He smiled.", None),
    ],
)
def test_hashes_in_files_that_are_there_stay_as_they_are(text: str, value: int | None) -> None:
    """Files of vectors and maps hold them."""
    assert unit_hash(text) == value


def test_how_all_items_are_asked_is_no_leak() -> None:
    """A sentence that many scored texts have stands in the texts behind the vector too, and says nothing."""
    asked = "Choose one of the following options now. "
    scored = [f"{asked}Which of the colours number {word} is best?" for word in "abcdefghij"]
    behind = [f"{asked}How would you like the day of {word} to end?" for word in "klmno"]
    assert overlap(scored, unit_hashes(behind)) == []
    assert overlap(scored, unit_hashes([*behind, scored[3]])) == [scored[3]]
    # Of two texts that share a sentence both have been seen in part.
    assert overlap(scored[:2], unit_hashes(behind)) == scored[:2]


def test_the_report_says_how_many_were_seen_in_part() -> None:
    whole, part, other = (
        "你在苹果里发现了一条虫子。",
        "天很晚了。你在学校里丢了一本新书。",
        "今天早上外面下了一场大雪。",
    )
    report = leak_report(
        [whole, part, other, whole],
        unit_hashes([whole]),
        unit_hashes(["昨天，老师来了。你在学校里丢了一本新书！"]),
    )
    assert report == {
        "evaluated": 3, "overlap_vector": 1, "overlap_map": 1, "in_part": 1, "examples": [whole, part],
    }  # fmt: skip


def test_nothing_is_seen_where_there_is_nothing() -> None:
    report = leak_report(["\ud83d half", ""], np.empty(0, np.int64), unit_hashes(["", "\ud83d half of one"]))
    assert (report["overlap_vector"], report["overlap_map"], report["in_part"]) == (0, 0, 0)
