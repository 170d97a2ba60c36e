"""Japanese and Chinese words that are written in Chinese characters alone, told apart by their characters.

A character is usual in Chinese if it is in GB 2312 (simplified) or Big5 (traditional), and in Japanese if it is in the
first level of JIS X 0208, in the Jōyō list (2010) or in a word that a dictionary marks as common. A word is possible in
a language if its form is: 経済 and 会議 are Japanese, 经济 and 會議 Chinese, 学生 is both. A clause is Chinese, as in
Japanese it would have kana. The limit: a word whose characters are all usual in both languages is common here, even if
only one language has that word (勉強, 我去).
"""

from functools import cache
from typing import Literal

import regex

Form = Literal["zh", "ja", "both"]

_JOYO_BEYOND = "彙鬱楷諧毀嗅惧憬錮傲刹恣摯羞箋踪緻嘲貪丼訃璧哺喩瘍拉辣慄籠曖塡剝頰𠮟"
"""Characters of the Jōyō list outside the first level of JIS X 0208."""
_OF_COMMON_WORDS = (
    "乖亢仄佇俎俯偖儘儚冑冤凛几凭凰剌勒呟咀咄咎咤咬哥唸喘嗚嗜嗟嗽嘔嘴嘸嚏嚼囀囁囃埃墟壺夥夭奢姜婉嫋嬌孕屁屏屓屹峙嵌"
    "巫幟彗彷彿徊徘徨恍恫愕愴懺戌戮拗拮拵捏捩掏掟揄揆揉揶撥撼擤擽攘敲斂旁昴晰暈曰曼杞梳棘棹椒椰榜樅橙檄檻櫂毫毯泄洒"
    "浚涎渾滓滲漑瀝瀟灌炒炬炸焉焜煌燵爛爬犇狡猜珀珈琥琲瑕瑣甕甦疱疵疸痒痣痺瘤皰皺眩睨瞑瞞瞠瞼瞽矮碌磋礫祀稍窶筐箏箒"
    "篆籐籤糺絆絨綺綽緞縊縋縺罅罠罹翔聊聘聳肛脛腱膠臍臘舅舐苺茗茣茹蓙蓼蕾薇薔蘆虱蚓蚯蛉蛛蜀蜃蜻蝸蟄蠅蠣裔褄褪訛誂諄諍謗謳"
    "貶贅贔跣跪踉踵蹌蹲躇躊躓躾軈輌轢逍逞遽鄙銜鋏鍼鑼鑽閊閾闊隕雉靡靨鞦韆頷颯飩餃餡饂饉饒騙鬆鬘鮑麒黎黴鼾齎"
)
"""Other characters of words that the dictionary JMdict marks as common (綺麗, 珈琲) or the Swadesh list has (虱)."""
_NUMERALS = "壹貳參肆柒玖"
"""Those of deeds (大字), which Chinese writes too."""
_MARKS = "々〆ヶ"
"""Japanese ones that Unicode counts as letters: those written Chinese words lack."""
_NOT_CHINESE = "伝粁粍"
"""In Big5, but obscure there and everyday in Japanese."""
_LETTERS = regex.compile(r"\p{L}")
_CLAUSE = regex.compile(r"[。，；！？!?,;]")
SHORTEST_CLAUSE = 4
"""Letters; fewer with a mark may be a token of either language."""
_HAN = regex.compile(r"[\p{Script=Han}ヶ]+")


@cache
def _usual() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Characters that are usual in simplified Chinese, in traditional Chinese and in Japanese."""
    blocks = [chr(code) for code in range(0x4E00, 0xA000)]
    simplified, traditional = (frozenset(c for c in blocks if _encoded(c, codec)) for codec in ("gb2312", "big5"))
    first_level = frozenset(c for c in blocks if len(code := _encoded(c, "euc_jp")) == 2 and code[0] <= 0xCF)
    return simplified, traditional - set(_NOT_CHINESE), first_level.union(_JOYO_BEYOND, _OF_COMMON_WORDS, _NUMERALS)


def _encoded(character: str, codec: str) -> bytes:
    return character.encode(codec, errors="ignore")


def han_form(text: str) -> Form | None:
    """In which of Chinese and Japanese a text in Chinese characters has a usual form; None for any other text."""
    letters = "".join(_LETTERS.findall(text))
    if not _HAN.fullmatch(letters) or not (plain := set(letters) - set(_MARKS)):
        return None
    simplified, traditional, japanese = _usual()
    chinese = plain <= simplified or plain <= traditional
    if plain == set(letters) and chinese:
        clause = len(letters) >= SHORTEST_CLAUSE and _CLAUSE.search(text)
        return "both" if plain <= japanese and not clause else "zh"
    if plain <= japanese or (not chinese and all(len(_encoded(c, "euc_jp")) == 2 for c in plain)):
        return "ja"
    # of mixed or rare forms, the more frequent peculiar characters decide
    only_japanese = sum(c in _MARKS or c in japanese - simplified - traditional for c in letters)
    only_chinese = sum(c in (simplified | traditional) - japanese for c in letters)
    return "both" if only_japanese == only_chinese else "ja" if only_japanese > only_chinese else "zh"
